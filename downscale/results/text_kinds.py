"""The kinds of text that perception writes and reasoners read: the one list of them.

What a table, a claim or a price takes of them is one of the names below, never a list of its own.
"""
from downscale.stage_table import WRITER

CAPTION = 'caption'        # of the whole picture, written without the question
EXTRACTION = 'extraction'  # of what one question needs
PERCEIVED = 'perceived'    # an extraction, by a model that learnt from what reasoners made of it
BRIEF = 'brief'            # a caption cut to the length of the same model's extraction
TEXT_KINDS = (CAPTION, EXTRACTION, PERCEIVED, BRIEF)
# The order in which one of them is chosen where a table or a claim shows a single kind.
BEST_FIRST = (EXTRACTION, CAPTION, PERCEIVED, BRIEF)

# The stage that a text of any kind comes from: nobody is tuned to be brief.
SOURCE_STAGE = {**WRITER, BRIEF: WRITER[CAPTION]}
