"""Images and their views: what a builder shows its teacher and, much later, a trainer shows its student, to the bit.

    sources.py   images by number, from folders, Parquet, arrays or idx files
    recipe.py    `crop:4,flip,mixup:0.2`: how views differ from their image
    draws.py     all that is random about a view, from (seed, image, view) alone
    pixels.py    the arithmetic, exact on every machine
    views.py     all of these together

NumPy only; Pillow decodes JPEG, PNG and the like, and is not needed for arrays.
"""
