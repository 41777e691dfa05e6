"""Bytes that a compiled program moves to and from HBM: against arithmetic."""
import pytest

from downscale.planner.traffic import hbm_bytes, moved

FAST = '{1,0:T(8,128)S(1)}'
SLOW = '{1,0:T(8,128)}'
KILO = 8 * 32 * 4   # bytes of f32[8,32]


def main(*lines, before=''):
    """The text of a program of these instructions."""
    body = '\n'.join(f'  {line}' for line in lines)
    return f'''HloModule one
{before}
ENTRY %main (x: f32[8,32]) -> f32[8,32] {{
  %x = f32[8,32]{SLOW} parameter(0)
  %i = s32[]{{:T(128)S(6)}} parameter(1)
{body}
}}
'''


def test_a_layout_says_where_an_array_lies():
    assert hbm_bytes(f'(f32[8,32]{SLOW}, bf16[8,32]{FAST}, s32[4]{{0:T(128)}}, pred[])') == [
        KILO, 0, 16, 1]


def test_what_is_read_from_hbm_and_written_to_it_counts():
    for result, times in ((SLOW, 2), (FAST, 1)):
        assert moved(main(f'ROOT %y = f32[8,32]{result} add(%x, %i)')) == times * KILO
    assert moved(main(f'%y = f32[8,32]{FAST} add(%x, %i)',
                      f'ROOT %z = f32[8,32]{FAST} multiply(%y, %y)')) == KILO
    assert moved(main(f'ROOT %y = f32[8,32]{SLOW} bitcast(%x)')) == 0


def test_fetching_ahead_counts_where_it_is_started_and_storing_back_too():
    fetched = (f'%start = (f32[8,32]{FAST}, f32[8,32]{SLOW}, u32[]{{:S(2)}}) copy-start(%x)',
               f'%y = f32[8,32]{FAST} copy-done(%start)')
    stored = (f'%back = (f32[8,32]{SLOW}, f32[8,32]{FAST}, u32[]{{:S(2)}}) copy-start(%y)',
              f'ROOT %z = f32[8,32]{SLOW} copy-done(%back)')
    assert moved(main(*fetched)) == KILO
    assert moved(main(*fetched, *stored)) == 2 * KILO
    # Of a part that is fetched only the part moves.
    assert moved(main(
        f'%start = ((f32[8,32]{SLOW}), f32[2,32]{FAST}, s32[]{{:S(2)}}) slice-start(%x)',
        f'ROOT %y = f32[2,32]{FAST} slice-done(%start)')) == KILO / 4


RENAMED = '''%rename (p: f32[8,32]) -> f32[8,32] {
  %p = f32[8,32] parameter(0)
  ROOT %q = f32[8,32] bitcast(%p)
}
%called (p: f32[8,32], i: s32[]) -> f32[1,32] {
  %p = f32[8,32] parameter(0)
  %i = s32[] parameter(1)
  %q = f32[8,32] fusion(%p), kind=kLoop, calls=%rename
'''
FUSED = {
    # A row that is looked up, of an array that a nested fusion only renames.
    'gather': (RENAMED + '''  ROOT %row = f32[1,32] gather(%q, %i)
}
''', f'f32[1,32]{FAST}', KILO / 8),
    # The same, used whole.
    'product': (RENAMED + '''  ROOT %row = f32[1,32] reduce(%q, %i)
}
''', f'f32[1,32]{FAST}', KILO),
    # A row that is written in place: read and written, and nothing else of the array.
    'scatter': ('''%called (p: f32[8,32], i: s32[]) -> f32[8,32] {
  %p = f32[8,32] parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,32] broadcast(%i)
  ROOT %q = f32[8,32] scatter(%p, %i, %row)
}
''', f'f32[8,32]{SLOW}', 2 * KILO / 8),
    # Two results, of which one is the update of an array and one is new.
    'update': ('''%called (p: f32[8,32], i: s32[]) -> (f32[8,32], f32[8,32]) {
  %p = f32[8,32] parameter(0)
  %i = s32[] parameter(1)
  %row = f32[2,32] broadcast(%i)
  %q = f32[8,32] dynamic-update-slice(%p, %row, %i, %i)
  %new = f32[8,32] broadcast(%i)
  ROOT %both = (f32[8,32], f32[8,32]) tuple(%q, %new)
}
''', f'(f32[8,32]{SLOW}, f32[8,32]{SLOW})', 2 * KILO / 4 + KILO),
}


@pytest.mark.parametrize('name', FUSED)
def test_of_a_fusion_only_what_it_touches_counts(name):
    computations, result, expected = FUSED[name]
    text = main(f'ROOT %y = {result} fusion(%x, %i), kind=kLoop, calls=%called',
                before=computations)
    assert moved(text) == expected


LOOP = '''HloModule looped
%body (s: (s32[], f32[8,32])) -> (s32[], f32[8,32]) {
  %s = (s32[], f32[8,32]{1,0}) parameter(0)
  %n = s32[]{:S(6)} get-tuple-element(%s), index=0
  %x = f32[8,32]{1,0} get-tuple-element(%s), index=1
  %y = f32[8,32]{1,0} negate(%x)
  ROOT %t = (s32[], f32[8,32]{1,0}) tuple(%n, %y)
}
%go (s: (s32[], f32[8,32])) -> pred[] {
  %s = (s32[], f32[8,32]{1,0}) parameter(0)
  %n = s32[]{:S(6)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:S(6)} custom-call(%n), custom_call_target="asked"
}
ENTRY %main (x: f32[8,32]) -> (s32[], f32[8,32]) {
  %x = f32[8,32]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = f32[8,32]{1,0} negate(%x)
  %start = (s32[], f32[8,32]{1,0}) tuple(%zero, %first)
  ROOT %loop = (s32[], f32[8,32]{1,0}) while(%start), condition=%go, body=%body, SAID
}
'''


def test_a_loop_moves_as_often_as_it_runs_and_once_where_its_end_depends_on_data():
    known = LOOP.replace('SAID', 'backend_config={"known_trip_count":{"n":"5"}}')
    open_ended = LOOP.replace(', SAID', '')
    assert (moved(known), moved(known, endless=True)) == (2 * KILO + 5 * 2 * KILO, 0)
    assert (moved(open_ended), moved(open_ended, endless=True)) == (4 * KILO, 2 * KILO)
