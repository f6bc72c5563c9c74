# %% [markdown]
# # Your own generate function
# LongBench and passkey need answers only: a function from a list of prompts to a list of texts. e2bench truncates the
# prompts with your tokenizer, scores the answers officially, and resumes.

# %%
import e2bench

tokenizer = e2bench.load().tokenizer  # the tokenizer of your model, from transformers


# %% Call your model, your engine or your agent here. This one copies the first number that it finds.
def answer(prompts: list[str]) -> list[str]:
    return [next((word.strip(".") for word in prompt.split() if word.strip(".").isdigit()), "") for prompt in prompts]


# %% `window` is how many tokens prompt and answer may have together.
shared = {"tokenizer": tokenizer, "window": "1k"}
keys = e2bench.run("passkey", answer, lengths="512,1k", depths=3, trials=2, out="results/own-passkey", **shared)
print(keys.rows()[["length", "depth", "key", "pred", "success"]])

# %% Two of LongBench's tasks on demo samples; leave `data` out for the public ones.
run = e2bench.run("longbench", answer, data="demo", tasks="hotpotqa,trec", out="results/own-longbench", **shared)
print(run.scores["tasks"])

# %% What could make a number wrong is refused in one line.
try:
    e2bench.run("ppl", answer, **shared)
except e2bench.E2BenchError as error:
    print(error)

# %%
e2bench.report(["results/own-passkey", "results/own-longbench"], out="report")
