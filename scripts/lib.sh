# Shared by the other scripts, which source it: the packages of the
# system and the virtual environment that they need. Safe to run again; what is
# there already is left alone.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv

# What is built against, what the command calls, and what the tests work with.
PACKAGES=(
  aardvark-dns acl attr btrfs-progs buildah busybox-static ca-certificates catatonit containerd
  containernetworking-plugins crun curl dbus debian-archive-keyring debootstrap dmsetup docker.io
  e2fsprogs fuse-overlayfs fuse3 gcc git groff-base iproute2 iptables kmod libc6-dev libcap2-bin
  libfuse3-dev libnfs-utils mmdebstrap netavark nfs-common nfs-ganesha nfs-ganesha-vfs nftables
  pkg-config podman procps python3 python3-dev python3-venv qemu-system-common qemu-system-x86
  qemu-utils rpcbind ruby runc shellcheck skopeo slirp4netns systemd thin-provisioning-tools tini
  uidmap util-linux xfsprogs zstd
)

step() { printf '\n==> %s\n' "$*"; }

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# quietly COMMAND...: runs it; a terminal sees its newest line as it goes, and
# all of what it said is shown only if it fails.
quietly() {
  local log status=0 newest=drain
  log=$(mktemp)
  [[ ! -t 1 ]] || newest=show_newest_line
  "$@" </dev/null 2>&1 | tee "$log" | "$newest" || status=$?
  ((status == 0)) || cat "$log" >&2
  rm -f "$log"
  return "$status"
}

drain() { cat >/dev/null; }

show_newest_line() {
  local line
  while read -r line; do
    printf '\r\033[K    %.72s' "$line"
  done
  printf '\r\033[K'
}

need_root() {
  ((EUID == 0)) || die "mounting, devices and trusted xattrs need root; run: sudo scripts/${0##*/}"
}

is_installed() {
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

install_packages() {
  local package missing=()
  command -v apt-get >/dev/null ||
    die "no apt-get here; Debian 12 or newer is expected (elsewhere, see \"By hand\" in README.md)"
  for package in "${PACKAGES[@]}"; do
    is_installed "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  step "installing ${#missing[@]} packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-get -q update || die "apt-get update failed (above); is there a network?"
  quietly apt-get -q install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get install failed (above)"
}

# Debian's own interpreter first: every user may run it, where one below
# somebody's home (pyenv) cannot be run by the users that the tests become.
find_python() {
  local python
  for python in /usr/bin/python3 python3; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  die "no python3 of version 3.11 or newer with the venv module found"
}

# What the environment was made from: it is used again while this is the same.
venv_stamp() {
  printf '%s\n' "$ROOT" "$("$1" -c 'import sys; print(sys.executable, sys.version)')"
  cat "$ROOT/pyproject.toml"
}

make_venv() {
  local python stamp
  python=$(find_python)
  stamp=$(venv_stamp "$python" | sha256sum)
  if [[ $(cat "$VENV/stamp" 2>/dev/null) == "$stamp" ]] &&
    "$VENV/bin/python" -c 'import pyfuse3, unionfs' 2>/dev/null; then
    return 0
  fi
  step "making the virtual environment .venv with $("$python" --version) (a minute, the first time)"
  "$python" -m venv --clear "$VENV"
  # The package's own files stay where they are (-e): what is edited is what runs.
  quietly "$VENV/bin/python" -m pip install --disable-pip-version-check -e "${ROOT}[test,containerd]" ||
    die "pip install failed (above); is there a network?"
  # sudo must not leave its caller with files that only root can replace.
  chown -R --reference="$ROOT" "$VENV"
  printf '%s\n' "$stamp" >"$VENV/stamp"
}

# Packages and environment. Held under a lock, so that two at once do not build
# into each other.
set_up() {
  need_root
  {
    flock 9
    install_packages
    make_venv
  } 9<"$ROOT"
  PATH=$VENV/bin:$PATH
}
