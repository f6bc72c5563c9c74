"""RULER's samples (Hsieh et al., arXiv 2404.06654), to the letter as its own generator writes them.

Written anew after scripts/data/synthetic of NVIDIA/RULER at c3f5e3b (Apache-2.0). Numbers are drawn in its order from
the same generators of the same seed, so that equal settings, words and tokenizer give equal samples.

- sizing.py: how long a sample may be, and the search for its size
- needles.py, chains.py, words.py, questions.py: what samples are made of; their arguments are in `tasks/ruler.py`
- sources.py: words, essays and questions that they are made from; store.py: samples on the disk

lm-eval 0.4.13 has a port of an older RULER (lm_eval/tasks/ruler) that is not used, since its samples are others: it
looks for the size in fixed steps instead of by halving, draws from Python's shared generator in whatever state that is,
leaves the worked example out of cwe, keeps the misspelt prefix of vt, counts BOS, and cannot be imported without
fetching data.
"""
