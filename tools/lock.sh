#!/usr/bin/env bash
# Writes requirements.lock: everything but vLLM, at versions with which the [vllm] extra resolves too.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(.venv/bin/uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header pyproject.toml)
everything=$(mktemp); trap 'rm -f "$everything"' EXIT
"${compile[@]}" --all-extras -o "$everything"
"${compile[@]}" --extra sam2 --extra train --extra s3 --extra shots --extra a2d --extra dev -c "$everything" -o requirements.lock
.venv/bin/python - <<'PY'
# uv repeats the supported environments behind every line; pip and uv need only what differs between them.
import pathlib, re
here = pathlib.Path("requirements.lock")
both = "((platform_machine == 'aarch64' and platform_python_implementation == 'CPython' and sys_platform == 'linux') or (platform_machine == 'x86_64' and platform_python_implementation == 'CPython' and sys_platform == 'linux'))"
lines = []
for line in here.read_text().splitlines():
    line = line.replace("python_full_version < '3.14' and " + both, "").replace(both, "")
    line = line.replace("python_full_version < '3.14' and ", "").replace("platform_python_implementation == 'CPython' and ", "")
    lines.append(re.sub(r"\s*(;|\band)\s*$", "", line))
here.write_text("\n".join(lines) + "\n")
PY
