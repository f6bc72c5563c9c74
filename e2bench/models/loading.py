"""From what `--model` says to weights and tokenizer: hub id, folder, `.gguf` file or PEFT adapter folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from e2bench.compat import unpacked_gguf
from e2bench.environment import number
from e2bench.errors import E2BenchError, ModelError, is_panic
from e2bench.extras import require
from e2bench.files import read_json
from e2bench.hub import OFFLINE, is_cached, is_online
from e2bench.models.adapters import merge_adapter
from e2bench.models.claims import check_adapter_folder, check_folder_claims, check_hub_claims
from e2bench.models.gguf_file import GgufFile, GgufRope, one_reading, tell
from e2bench.models.keys import check_keys
from e2bench.models.names import FLASH
from e2bench.models.tokenizers import checked
from e2bench.rope.switch import divide_frequencies
from e2bench.terminal import failing_quietly

EMBEDDED = "e2bench-tiny"  # in every table
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "config.json")
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "adapter_model.bin", "*.ckpt")


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how to hold it. `model` None means the embedded tiny model."""

    model: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    attention: str = "sdpa"
    revision: str | None = None
    tokenizer: str | None = None
    native_window: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    compile: bool = False
    batch_invariant: bool = False

    @property
    def path(self) -> str:
        """What is handed to transformers."""
        return self.model or str(embedded_model())

    @property
    def name(self) -> str:
        """Short name for tables and folders."""
        if self.model is None:
            return EMBEDDED
        return Path(self.path).stem if self.path.endswith(".gguf") else Path(self.path).name


def embedded_model() -> Path:
    """Folder of the tiny model that ships with e2bench."""
    folder = Path(str(files("e2bench") / "assets" / "tiny"))
    if not (folder / "config.json").exists():
        raise ModelError("this installation has no embedded model; name one with --model")
    return folder


@dataclass(frozen=True)
class Loaded:
    """What was read from the disk.

    native: L in tokens where the file tells it and the config does not.    own_factor: window / L of a scaling that
        only the file has, which then is in the rotary modules already.
    """

    hf: Any
    tokenizer: Any
    native: int | None = None
    own_factor: float | None = None


@one_reading()
def load_weights(spec: ModelSpec) -> Loaded:
    """Weights and tokenizer, nothing dropped. Raises ModelError, one line, for whatever cannot be loaded whole."""
    import torch

    _check_ways(spec)
    device = device_of(spec.device)
    source, adapter = _source(spec)
    options: dict[str, Any] = {
        "dtype": dtype_of(spec.dtype, device),
        # ours is set after loading (it needs no mask); transformers itself must not meet the name before
        "attn_implementation": spec.attention,
        "device_map": spec.device_map,
        **source,
    }
    from transformers import AutoModelForCausalLM

    gguf = None
    if "gguf_file" in source:
        options |= unpacked_gguf()
        gguf = GgufFile(Path(source["pretrained_model_name_or_path"]) / source["gguf_file"])
        rope = gguf.rope()
        options |= _gguf_config(spec, source, rope)
    else:
        options |= _own_config(spec, source, adapter)
        options["use_safetensors"] = None if spec.allow_pickle else True
        if not Path(source["pretrained_model_name_or_path"]).is_dir():
            check_hub_claims(spec.path, source["revision"], allow_pickle=spec.allow_pickle)

    hf, info = _guarded(
        spec, lambda: AutoModelForCausalLM.from_pretrained(**options, output_loading_info=True), "weights"
    )
    check_keys(spec.path, info)
    if getattr(hf.config.get_text_config(), "num_hidden_layers", 1) < 1:
        raise ModelError(f"{spec.path} has no layers: num_hidden_layers in its config must be at least 1")
    if adapter:
        hf = _guarded(spec, lambda: merge_adapter(hf, adapter, allow_pickle=spec.allow_pickle), "adapter")
    if any(not p.is_floating_point() for p in hf.parameters()):
        raise ModelError(
            f"{spec.path}: some weights are still quantised after loading; give a float or GGUF checkpoint"
        )
    if spec.device_map is None:
        hf = _guarded(spec, lambda: hf.to(torch.device(device)), f"copy on {device}")
    if spec.attention in FLASH and (hf.device.type != "cuda" or hf.dtype.itemsize != 2):
        dtype = str(hf.dtype).removeprefix("torch.")
        raise ModelError(
            f"--attn {spec.attention} needs a GPU and --dtype bfloat16 or float16, got {hf.device.type} and {dtype}"
        )
    tokenizer = _tokenizer(spec, source, adapter)
    if gguf is None:
        return Loaded(hf, tokenizer)
    window = _gguf_window(spec, rope)
    if rope.factors:
        divide_frequencies(hf, rope.factors)
    return Loaded(hf, _fitted(spec, gguf, tokenizer), *window)


@one_reading()
def load_config(spec: ModelSpec) -> Loaded:
    """Config and tokenizer without the weights: `hf` is the config. Raises ModelError as `load_weights` does."""
    from transformers import AutoConfig

    _check_ways(spec)
    source, adapter = _source(spec)
    config = _guarded(spec, lambda: AutoConfig.from_pretrained(**source), "config")
    tokenizer = _tokenizer(spec, source, adapter)
    if "gguf_file" not in source:
        return Loaded(_own_config(spec, source, adapter, config).get("config", config), tokenizer)
    gguf = GgufFile(Path(source["pretrained_model_name_or_path"]) / source["gguf_file"])
    rope = gguf.rope()
    config = _gguf_config(spec, source, rope).get("config", config)
    return Loaded(config, _fitted(spec, gguf, tokenizer), *_gguf_window(spec, rope))


def _fitted(spec: ModelSpec, gguf: GgufFile, tokenizer: Any) -> Any:
    return gguf.fit_tokenizer(tokenizer) if spec.tokenizer is None else tokenizer


def _gguf_window(spec: ModelSpec, rope: GgufRope) -> tuple[int | None, float | None]:
    """(L, factor of a scaling that only the file has) as a GGUF file tells them."""
    if not rope.factors:
        return rope.native, None
    native = spec.native_window or rope.native
    if native is None:
        raise ModelError(
            f"{spec.path} has frequency factors of an unknown rule, which do not tell the native window; give it with "
            "--native-window"
        )
    return native, max(1.0, (rope.context or native) / native)


def _gguf_config(spec: ModelSpec, source: dict[str, Any], rope: GgufRope) -> dict[str, Any]:
    """The `config` argument of from_pretrained with the file's own RoPE scaling; {} where it has none."""
    tell(rope, Path(source["gguf_file"]))
    if not rope.parameters:
        return {}
    from transformers import AutoConfig

    config = _guarded(spec, lambda: AutoConfig.from_pretrained(**source), "config")
    config.rope_parameters = {**(config.rope_parameters or {}), **rope.parameters}
    return {"config": config}


def _own_config(spec: ModelSpec, source: dict[str, Any], adapter: Path | None, config: Any = None) -> dict[str, Any]:
    """The `config` argument of from_pretrained in which the base's own angles are the native rotation; {} elsewhere.

    So they are under an adapter that was tuned so (its e2_config.json names the base's scaling), and where
    --native-window is the window of the checkpoint's own scaling.    config: the base's, if it was read already.
    """
    native = _tuned_window(adapter / "e2_config.json") if adapter else None
    if native is None and spec.native_window is None:
        return {}
    from transformers import AutoConfig

    from e2bench.models.scaled_config import own_as_native, scaled_window

    if config is None:
        config = _guarded(spec, lambda: AutoConfig.from_pretrained(**source), "config")
    if native is None and spec.native_window != scaled_window(config):
        return {}
    own_as_native(config, native)
    return {"config": config}


def _tuned_window(path: Path) -> int | None:
    """L of an adapter that was tuned at its base's own angles, else None. Raises ModelError for a damaged file."""
    tuned = read_json(path) if path.is_file() else {}
    if not tuned.get("base_scaling"):
        return None
    native = tuned.get("native_window")
    if not isinstance(native, int) or native < 1:
        raise ModelError(
            f"{path} names the base's scaling ({tuned['base_scaling']}) and has native_window {native!r}, which must "
            "be its window in tokens; copy the file from the training's folder again"
        )
    return native


def _source(spec: ModelSpec) -> tuple[dict[str, Any], Path | None]:
    """Arguments of from_pretrained that say where the weights are, and the adapter's folder if it is one."""
    common: dict[str, Any] = {"revision": spec.revision or "main", "trust_remote_code": spec.trust_remote_code}
    path = Path(spec.path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no file {path}; --model takes a .gguf file, a folder or a hub id")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}, None
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
            if not base or not isinstance(base, str):
                raise ModelError(f"{path / 'adapter_config.json'} names no base_model_name_or_path")
            if (Path(base) / "adapter_config.json").exists():
                raise ModelError(f"the base of the adapter {path} is an adapter itself ({base}); merge that one first")
            return _source(replace(spec, model=base))[0], path
        _check_folder(path, spec)
    else:
        check_hub_id(spec.path, common["revision"])
    return {"pretrained_model_name_or_path": spec.path, **common}, None


def check_hub_id(name: str, revision: str = "main", files: Sequence[str] = ("config.json",)) -> None:
    """Raises ModelError for a name that is neither a folder nor a hub id, and for a hub id that cannot be had now.

    files: one of them is there where it can be had without the hub.
    """
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ModelError(f"no folder or file {name}; give a folder, a .gguf file or a hub id (owner/name)")
    if not is_online() and not any(is_cached(name, file, revision) for file in files):
        raise ModelError(
            f"{name} is not in the hub's cache, and {OFFLINE}; give a folder or a .gguf file, or run "
            f"`hf download {name}` where there is a network"
        )


def check_source(spec: ModelSpec) -> None:
    """Refuse what can be refused without torch: a model that is not there, pickles, code, claims, no flash-attn."""
    _check_ways(spec)
    source, adapter = _source(spec)
    path = Path(source["pretrained_model_name_or_path"])
    if "gguf_file" in source:
        GgufFile(path / source["gguf_file"]).rope()
    elif adapter is not None and path.is_dir():
        check_adapter_folder(adapter, path)


def _check_folder(path: Path, spec: ModelSpec) -> None:
    if not (path / "config.json").exists():
        raise ModelError(f"{path} is no model folder: it has no config.json")
    config = read_json(path / "config.json")
    if config.get("auto_map") and not spec.trust_remote_code and not _is_native(config):
        raise ModelError(f"{path} brings its own Python code; read it, then give --trust-remote-code to run it")
    check_folder_claims(path, allow_pickle=spec.allow_pickle)
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in PICKLED for p in path.glob(pattern))
    if not pickled:
        raise ModelError(f"{path} holds no weights: needed *.safetensors (or give a .gguf file)")
    if not spec.allow_pickle:
        raise ModelError(
            f"{path / pickled[0]} is a pickle, which can run code; convert it to safetensors, or give --allow-pickle "
            "to read its tensors alone"
        )


def _is_native(config: dict[str, Any]) -> bool:
    """Whether transformers has the model's class itself, so that code beside the weights is not needed."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    return isinstance(kind, str) and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _check_ways(spec: ModelSpec) -> None:
    """Refuse an attention that is not installed, and what `InvariantModel` cannot be."""
    name = spec.attention
    if name in FLASH:
        require(FLASH[name], "flash", f"--attn {name}")
    if not spec.batch_invariant:
        return
    beside = {
        f"--attn {name}": name not in ("sdpa", "eager"),
        "--device-map": spec.device_map,
        "--compile": spec.compile,
    }
    if refused := [option for option, is_given in beside.items() if is_given]:
        raise E2BenchError(
            f"--batch-invariant cannot promise the same bits with {refused[0]}; leave one of the two out"
        )


def device_of(name: str) -> str:
    """What `--device` means here: `auto` is this process's GPU, or the CPU."""
    import torch

    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError:
            raise E2BenchError(f"device {name!r} is not known; use cpu, cuda or cuda:N") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise E2BenchError("--device cuda was asked for, but torch sees no GPU; use --device cpu")
        return name
    if torch.cuda.is_available():
        return f"cuda:{number('LOCAL_RANK', number('SLURM_LOCALID')) % torch.cuda.device_count()}"
    return "cpu"


def device_name(device: Any) -> str:
    """`cpu (2 threads)` or the GPU's own name; `server` for a model that is elsewhere (None)."""
    if device is None:
        return "server"
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def dtype_of(name: str, device: str) -> Any:
    """auto: float32 on a CPU (the reference mode), the checkpoint's own on a GPU."""
    import torch

    if name == "auto":
        return torch.float32 if device == "cpu" else "auto"
    return getattr(torch, name)


@failing_quietly()
def _tokenizer(spec: ModelSpec, source: dict[str, Any], adapter: Path | None) -> Any:
    from transformers import AutoTokenizer

    if spec.tokenizer:
        source = _tokenizer_source(spec.tokenizer, spec.trust_remote_code)
    elif adapter and (adapter / "tokenizer_config.json").exists():
        source = {"pretrained_model_name_or_path": str(adapter), "trust_remote_code": spec.trust_remote_code}
    tokenizer = _guarded(spec, lambda: AutoTokenizer.from_pretrained(**source), "tokenizer")
    if not len(tokenizer):
        raise ModelError(f"{spec.path}: no tokenizer in this folder; give one with --tokenizer")
    return checked(tokenizer, _tokenizer_file(source), lambda: _plain_tokenizer(spec, source))


def _tokenizer_file(source: dict[str, Any]) -> Path | None:
    """The tokenizer.json that `source` is loaded from: in a folder, or in the hub's cache."""
    if "gguf_file" in source:
        return None
    folder = Path(source["pretrained_model_name_or_path"])
    if folder.is_dir():
        return folder / "tokenizer.json" if (folder / "tokenizer.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(folder), "tokenizer.json", revision=source.get("revision"))
    return Path(cached) if isinstance(cached, str) else None


def _plain_tokenizer(spec: ModelSpec, source: dict[str, Any]) -> Any:
    from transformers import PreTrainedTokenizerFast

    return _guarded(spec, lambda: PreTrainedTokenizerFast.from_pretrained(**source), "tokenizer")


def _tokenizer_source(name: str, trust_remote_code: bool) -> dict[str, Any]:
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no file {path}; --tokenizer takes a .gguf file, a folder or a hub id")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not path.is_dir():
        check_hub_id(name, files=TOKENIZER_FILES)
    return {"pretrained_model_name_or_path": name, "trust_remote_code": trust_remote_code}


@one_reading()
def load_tokenizer(name: str, trust_remote_code: bool = False) -> tuple[Any, int | None]:
    """(tokenizer, native window if a config lies beside it) of a hub id, a folder or a `.gguf` file."""
    from transformers import AutoConfig

    from e2bench.rope.config import native_window

    spec = ModelSpec(model=name, tokenizer=name, trust_remote_code=trust_remote_code)
    tokenizer = _tokenizer(spec, {}, None)
    try:
        config = AutoConfig.from_pretrained(**_tokenizer_source(name, trust_remote_code))
        return tokenizer, native_window(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, E2BenchError):  # a tokenizer alone
        return tokenizer, None


def _guarded(spec: ModelSpec, call: Any, what: str) -> Any:
    """Run a loader; whatever it raises becomes one line."""
    try:
        return call()
    except E2BenchError:
        raise
    except BaseException as error:  # transformers, safetensors and tokenizers raise their own many kinds
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if "scaled_dot_product_attention yet" in reason:
            reason = f"transformers has no SDPA for {reason.split()[0]}; give --attn eager"
        raise ModelError(f"the {what} of {spec.path} cannot be loaded: {reason[:300]}") from None
