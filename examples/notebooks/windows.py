# %% [markdown]
# # One model, several windows
# Perplexity by window under each way of scaling: the same weights, g chosen per length. Runs on the embedded model
# in half a minute; give your own to `e2bench.load`.

# %%
import matplotlib.pyplot as plt
import pandas as pd

import e2bench

model = e2bench.load()  # or e2bench.load("meta-llama/Llama-2-7b-hf", dtype="bfloat16")
METHODS = ("none", "linear", "ntk", "yarn")

# %% Each run is a folder: given again, this cell continues where it stopped, and a longer list of lengths adds lines.
lengths = "512,1k,2k"
fixed = {"docs": 1, "doc_tokens": "2k", "min_tokens": "2k", "max_windows": 2}  # the same text at every length
runs = {
    method: e2bench.run("ppl", model, lengths=lengths, method=method, out=f"results/ppl-{method}", **fixed)
    for method in METHODS
}

# %% One row a (document, window, scale), with sums of nats, so that any mean can be recomputed.
print(runs["yarn"].rows()[["window", "scale", "nll_sum", "scored_tokens"]])

# %%
cells = pd.concat(pd.DataFrame(run.scores["cells"]).assign(method=method) for method, run in runs.items())
table = cells.pivot(index="window", columns="method", values="perplexity")
print(table.round(2))

# %%
table.plot(marker="o", logx=True, ylabel="perplexity (press)", xlabel="window (tokens)")
plt.savefig("windows.png", dpi=150)
