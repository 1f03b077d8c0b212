"""How far any model is from a reference, of which a store is all that is needed: `softlabels kld`.

positions.py    what the reference says at each position, and what one candidate does
bins.py         a candidate's logits, seen through the reference's kept ids
candidates.py   what MODEL may be, and whether its ids mean what the reference's do
tails.py        the part of the KL that lies within the tails, estimated
compare.py      the pass: every row of the reference through a candidate
work.py         what is finished of that, on disk
findings.py     the figures, their intervals, groups, and which of two is nearer; record.py is what they say
text.py         the table of a terminal, the block of a model card
reference.py    making a reference
"""
