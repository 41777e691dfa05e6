"""What is learnt from what was written: the slope of an objective by each token's log-probability.

A step needs no more than these slopes (`train/step.policy_loss`): the gradient of any function of
the log-probabilities is their sum, each weighed by its slope. Everything here is numpy, for groups
of rows that follow one another.
"""
from dataclasses import dataclass

import numpy as np

from downscale.stage_config import PolicySettings


@dataclass(frozen=True, kw_only=True)
class Written:
    """The rows of a batch and what came of them.

    `own_BL` marks the tokens that were written. Log-probabilities [B, L] of them: `now_BL` under
    the parameters of this step, `then_BL` under those that wrote, `start_BL` under those that the
    stage began with (None: nobody asks). `reward_B` is what a row is paid, and `solved_B` the share
    of the reasoners that answered rightly from what it is paid for.
    """
    own_BL: np.ndarray
    now_BL: np.ndarray
    then_BL: np.ndarray
    start_BL: np.ndarray | None
    reward_B: np.ndarray
    solved_B: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """Slopes and weights [B, L], of which a step takes sum over sum, and the `loss` they are of."""
    slopes_BL: np.ndarray
    weights_BL: np.ndarray
    loss: float
    clipped: float = 0.0


def slopes_of(policy: PolicySettings, loss_norm: str, written: Written) -> Slopes:
    """Return the `Slopes` of a batch by the method of `policy`.

    With `loss_norm` 'token' all tokens weigh alike (arXiv 2503.14476), with 'example' all rows.
    """
    share_BL = written.own_BL.astype(np.float64)
    if loss_norm == 'example':
        share_BL = share_BL / np.maximum(share_BL.sum(1, keepdims=True), 1)
    method = {'grpo': _grpo, 'rejection': _rejection, 'dpo': _dpo}[policy.method]
    return method(policy, written, share_BL)


def advantages(reward_B: np.ndarray, group: int) -> np.ndarray:
    """Return by how many standard deviations each row is better than its group, float64 [B].

    0 where all of a group are worth the same.
    """
    reward_QG = np.asarray(reward_B, np.float64).reshape(-1, group)
    # Only within a group: that some questions are easier must teach nothing.
    gap_QG = reward_QG - reward_QG.mean(1, keepdims=True)
    spread_Q1 = reward_QG.std(1, keepdims=True)
    # A mean of equal values may miss them by a rounding, which would be blown up to 1.
    mixed_Q1 = mixed(reward_B, group)[:, None]
    return np.where(mixed_Q1, gap_QG / np.where(mixed_Q1, spread_Q1, 1), 0).ravel()


def mixed(reward_B: np.ndarray, group: int) -> np.ndarray:
    """Return which groups have rows of different worth, bool [Q]."""
    reward_QG = np.asarray(reward_B).reshape(-1, group)
    return reward_QG.max(1) > reward_QG.min(1)


def distance(written: Written) -> float:
    """Return the mean distance of a written token from the start, in nats; NaN where unasked.

    It is the estimate exp(d) - d - 1 of the Kullback-Leibler divergence, which is never negative.
    """
    if written.start_BL is None:
        return float('nan')
    # A mean over what was drawn from now: exp(d) - d - 1 has the divergence as its expectation.
    gap_BL = written.start_BL - written.now_BL
    return float((np.exp(gap_BL) - gap_BL - 1)[written.own_BL].mean())


def _grpo(policy, written, share_BL):
    """Return the slopes of the clipped objective, less `kl` times the distance from the start."""
    # All tokens of a row share what the row was worth: nobody knows which of them it was.
    gain_B1 = advantages(written.reward_B, policy.group)[:, None]
    ratio_BL = np.exp(np.where(written.own_BL, written.now_BL - written.then_BL, 0))
    low, high = policy.clip
    # The objective is the smaller of both, so only one side of each sign is flat.
    flat_BL = (gain_B1 > 0) & (ratio_BL > 1 + high) | (gain_B1 < 0) & (ratio_BL < 1 - low)
    cut_BL = np.clip(ratio_BL, 1 - low, 1 + high)
    value_BL = np.minimum(ratio_BL * gain_B1, cut_BL * gain_B1)
    slope_BL = np.where(flat_BL, 0, ratio_BL * gain_B1)
    if written.start_BL is not None:
        gap_BL = np.where(written.own_BL, written.start_BL - written.now_BL, 0)
        value_BL = value_BL - policy.kl * (np.exp(gap_BL) - gap_BL - 1)
        slope_BL = slope_BL - policy.kl * (1 - np.exp(gap_BL))
    return Slopes(slopes_BL=slope_BL * share_BL, weights_BL=share_BL,
                  loss=-float((value_BL * share_BL).sum() / share_BL.sum()),
                  clipped=float(flat_BL[written.own_BL].mean()))


def _rejection(policy, written, share_BL):
    """Return the slopes of the likelihood of the best row of each group that answers at all."""
    reward_QG = written.reward_B.reshape(-1, policy.group)
    # Of equals the first: which one it is follows from the seed alone.
    rows = np.arange(len(reward_QG)) * policy.group + reward_QG.argmax(1)
    rows = rows[written.solved_B[rows] > 0]
    chosen_BL = np.zeros_like(share_BL)
    chosen_BL[rows] = share_BL[rows]
    loss = -(np.where(written.own_BL, written.now_BL, 0) * chosen_BL).sum() / max(
        chosen_BL.sum(), 1e-9)
    return Slopes(slopes_BL=chosen_BL, weights_BL=chosen_BL, loss=float(loss))


def _dpo(policy, written, share_BL):
    """Return the slopes of preferring the best of each group over its worst."""
    del share_BL  # a pair counts once, however long its rows are
    G = policy.group
    reward_QG = written.reward_B.reshape(-1, G)
    groups = np.flatnonzero(mixed(written.reward_B, G))
    best = groups * G + reward_QG[groups].argmax(1)
    worst = groups * G + reward_QG[groups].argmin(1)
    gain_B = np.where(written.own_BL, written.now_BL - written.start_BL, 0).sum(1)
    margin = policy.kl * (gain_B[best] - gain_B[worst])
    # 1 - sigmoid(margin): how much is left to prefer.
    left = policy.kl / (1 + np.exp(margin))
    slopes_BL = np.zeros(written.own_BL.shape)
    weights_BL = np.zeros_like(slopes_BL)
    for rows, sign in ((best, 1), (worst, -1)):
        slopes_BL[rows] = sign * left[:, None] * written.own_BL[rows]
        own_BL = written.own_BL[rows]
        weights_BL[rows] = own_BL / (2 * np.maximum(own_BL.sum(1, keepdims=True), 1))
    # -log sigmoid(margin), without its overflow.
    loss = np.logaddexp(0, -margin).sum() / max(len(groups), 1)
    return Slopes(slopes_BL=slopes_BL, weights_BL=weights_BL, loss=float(loss))
