"""What decides a build beside the mixture and the files: root, tokenizer, limits."""
from dataclasses import dataclass
from pathlib import Path

from downscale.data.chat import CHATS
from downscale.data.tokens import Encoder, Layout, load_tokenizer
from downscale.sizes import SIGLIP, Pictures
from downscale.stage_table import STAGES

LENGTH = 32768  # tokens of a record (arXiv 2511.17487 and its code: the tokenizer's maximum)
VISION = SIGLIP['so400m-patch14-384']


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a build beside the mixture and the files.

    `root` is where the sources lie, `tokenizer` the one that counts, `length` the most tokens of a
    record, `most_rejected` the share of a source that may be rejected.
    """
    root: Path
    tokenizer: Path | None = None
    length: int = LENGTH
    most_rejected: float = 0.01

    def encoder(self, stage: str) -> Encoder | None:
        """Return the encoder that counts tokens as `stage` does; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        plain = STAGES[stage].layout == 'flat'
        return Encoder(load_tokenizer(self.tokenizer), CHATS['plain' if plain else 'chatml'],
                       Layout(VISION, Pictures('flat' if plain else 'anyres')))
