# %% [markdown]
# # Is the difference real?
# Two runs over the same samples, compared pair by pair: the interval is of the differences, which is far narrower than
# that of two separate means.

# %%
import pandas as pd

import e2bench

model = e2bench.load()
fixed = {"lengths": "1k,2k", "docs": 2, "max_windows": 2}
linear = e2bench.run("ppl", model, method="linear", out="results/linear", **fixed)
yarn = e2bench.run("ppl", model, method="yarn", out="results/yarn", **fixed)

# %% Second less first, in nats a token, with bootstrap 95 % intervals over documents.
difference = e2bench.compare(linear.folder, yarn.folder)
print(difference["unit"])
print(pd.DataFrame(difference["tasks"]).T[["samples", "first", "second", "difference", "interval"]])

# %% The largest changes, sample by sample.
print(pd.DataFrame(difference["largest"])[["task", "id", "difference"]])

# %% Unlike things are refused.
other = e2bench.run("ppl", model, method="linear", lengths="512", docs=1, max_windows=2, out="results/other")
try:
    e2bench.compare(linear.folder, other.folder)
except e2bench.E2BenchError as error:
    print(error)
