"""The package as a kernel for Hugging Face's `kernels`, loaded from a local folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hf_kernel
import pytest
import torch

from helpers import ROOT
from sampled_softmax_cuda.ops import library

kernels = pytest.importorskip("kernels")

from kernels import _rust as rust  # noqa: E402

pytestmark = [
    pytest.mark.slow,  # compiles the operators, twice
    pytest.mark.skipif(not library.library_loaded(), reason=library.native_reason()),
]

# The kernels of `make build`, where they are; operators alone know the namespace.
COMPILED = ROOT / "build" / "dev" / "libssc_cpu.a"

# The installed package and two kernels train the same, each by operators of its own.
TRAIN = """
import functools, importlib.util, sys
from pathlib import Path
import kernels, torch
import sampled_softmax_cuda as installed

load = functools.partial(kernels.get_local_kernel, backend="cpu")  # under a CUDA torch too
modules = [installed, *(load(Path(folder)) for folder in sys.argv[2:])]
namespaces = [module._build.NAMESPACE for module in modules]
assert len(set(namespaces)) == len(modules), namespaces

def train(module):
    torch.manual_seed(0)
    head = module.SampledSoftmaxLoss(16, 1000, 64, sparse_grad=True)
    rows, target = torch.randn(8, 16, requires_grad=True), torch.arange(8)
    optimizer = module.optim.AdamW(head.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        head(rows, target).backward()
        optimizer.step()
    compiled = torch.compile(module.sampled_softmax_loss, backend="eager", fullgraph=True)
    loss = compiled(rows, head.weight, target, module.Samples(torch.arange(64)))
    return head.weight.detach(), rows.grad, loss.detach()

right = train(installed)
for module, namespace in zip(modules, namespaces):
    info = module.build_info()
    assert info["backend"] == "native", info["native_reason"]
    assert info["version"].startswith(sys.argv[1]), info["version"]
    called = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func.namespace)
            return func(*args, **(kwargs or {}))

    with Names():
        module.logits(torch.ones(2, 3), torch.ones(5, 3))
    assert namespace in called and not set(called) & (set(namespaces) - {namespace}), called
    assert all(torch.equal(a, b) for a, b in zip(train(module), right))

(variant,) = (Path(sys.argv[2]) / "build").iterdir()
spec = importlib.util.spec_from_file_location(
    "nested", variant / "sampled_softmax_cuda" / "__init__.py"
)
nested = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nested)
assert nested.SampledSoftmaxLoss is modules[1].SampledSoftmaxLoss
print(*namespaces)
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of these sources, and one as of others."""
    folder = tmp_path_factory.mktemp("hf_kernel")
    more = [f"-DSSC_CPU_LIBRARY={COMPILED}"] if COMPILED.is_file() else []
    hf_kernel.make_kernel(folder / "one", folder / "build", more=more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_kernel, "digest_of", lambda _: "another")
        hf_kernel.make_kernel(folder / "two", folder / "build", more=more)
    return [folder / "one", folder / "two"]


def test_several_kernels_in_a_process_train_as_the_installed_package(
    repositories: list[Path], tmp_path: Path
) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SSC_")}
    version = hf_kernel.found(r'^version = "(.+)"', "pyproject.toml")[1]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, version, *map(str, repositories)],
        env={**clean, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    installed, one, two = done.stdout.split()
    assert installed == "sampled_softmax"
    assert one.startswith("_sampled_softmax_cuda_cpu_")
    assert two == "_sampled_softmax_cuda_cpu_another"


def test_metadata_and_build_toml_are_what_kernels_reads(repositories: list[Path]) -> None:
    build = rust.Build.open(repositories[0])
    assert build.general.backends == [rust.Backend.CPU]
    (variant,) = (repositories[0] / "build").iterdir()
    assert variant.name.startswith("torch-stable-abi211-cpu-")
    metadata = rust.Metadata.read_from_file(variant / "metadata.json")
    assert metadata.name.python_name == hf_kernel.PACKAGE
    assert metadata.backend.backend_type == rust.Backend.CPU
    assert metadata.digest is not None
    files = rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, variant)
    metadata.digest.validate(files)  # raises if a file is missing, unknown or another


@pytest.mark.parametrize(
    ("cuda", "backend", "taken"), [(None, None, True), ("13.0", "cpu", True), ("13.0", None, False)]
)
def test_a_cuda_torch_takes_the_cpus_variant_by_name_alone(
    cuda: str | None, backend: str | None, taken: bool,
    repositories: list[Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    variants = kernels.variants.get_variants_local(repositories[0] / "build")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    chosen, _ = kernels.variants.resolve_variant(variants, backend)
    assert (chosen is not None) == taken


def test_sources_are_in_the_repository(repositories: list[Path]) -> None:
    for path in ("CMakeLists.txt", "csrc/ops/schema.cpp", "cmake/torch.cmake"):
        assert (repositories[0] / path).read_bytes() == (ROOT / path).read_bytes()
    package = repositories[0] / "torch-ext" / hf_kernel.PACKAGE
    assert (package / "ops/library.py").is_file()


def test_the_digest_changes_with_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_kernel, "ROOT", tmp_path)
    files = [Path("a.h"), Path("b.h")]
    digests = set()
    for contents in (("x", "y"), ("xy", ""), ("x", "z")):
        for path, content in zip(files, contents, strict=True):
            (tmp_path / path).write_text(content)
        digests.add(hf_kernel.digest_of(files))
    assert len(digests) == 3
