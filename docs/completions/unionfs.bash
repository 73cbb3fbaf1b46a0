# Completion of unionfs for bash, with or without the package bash-completion.
# shellcheck shell=bash

# The mountpoints of unions, as mountinfo has them with blanks in octal.
_unionfs_mounts() {
  local line fields
  while read -r line; do
    [[ $line == *' - fuse.unionfs '* ]] || continue
    read -r -a fields <<<"$line"
    printf '%b\n' "${fields[4]//\\/\\0}"
  done </proc/self/mountinfo
}

# _unionfs_reply HEAD COMPGEN-ARGUMENT... -- WORD: offers HEAD before each of
# compgen's words. Readline cuts an argument at "=" and ":" and replaces the
# last piece only, so what stands before that piece is taken off again.
_unionfs_reply() {
  local head=$1 reply
  shift
  while IFS= read -r reply; do
    reply=$head$reply
    COMPREPLY+=("${reply:_unionfs_cut}")
  done < <(compgen "$@")
}

_unionfs_directories() {
  compopt -o filenames
  _unionfs_reply "$1" -d -- "$2"
}

# _unionfs_options ARGUMENT: the last option of a comma-separated list.
_unionfs_options() {
  local last=${1##*,}
  local before=${1%"$last"} value=${last#*=}
  local names='lowerdir= lowerdir+= upperdir= workdir= ro rw volatile fsync= redirect_dir=
    userxattr squash_to_root squash_to_uid= squash_to_gid= uidmapping= gidmapping=
    xattr_permissions= static_nlink noacl noxattrs= ino32_t
    timeout= entry_timeout= negative_timeout= attr_timeout= passthrough= placement= session= debug fsname=
    allow_other noallow_other allow_root dev nodev suid nosuid exec noexec atime noatime
    strictatime nodiratime sync async dirsync'
  compopt -o nospace
  case $last in
    lowerdir=*) _unionfs_directories "${1%"${value##*:}"}" "${value##*:}" ;;
    lowerdir+=* | upperdir=* | workdir=*) _unionfs_directories "$before${last%%=*}=" "$value" ;;
    fsync=*) _unionfs_reply "${before}fsync=" -W '0 1' -- "$value" ;;
    xattr_permissions=*) _unionfs_reply "${before}xattr_permissions=" -W '0 1 2' -- "$value" ;;
    noxattrs=*) _unionfs_reply "${before}noxattrs=" -W '0 1' -- "$value" ;;
    redirect_dir=*) _unionfs_reply "${before}redirect_dir=" -W 'on off follow' -- "$value" ;;
    passthrough=*) _unionfs_reply "${before}passthrough=" -W 'auto on off' -- "$value" ;;
    placement=*) _unionfs_reply "${before}placement=" -W 'auto spread off' -- "$value" ;;
    session=*) _unionfs_reply "${before}session=" -W 'auto device pyfuse3' -- "$value" ;;
    *) _unionfs_reply "$before" -W "$names" -- "$last" ;;
  esac
}

_unionfs_keys() {
  local root driver
  root=$(_unionfs_given --root) driver=$(_unionfs_given --driver)
  unionfs snapshot ls --json ${root:+--root "$root"} ${driver:+--driver "$driver"} 2>/dev/null |
    sed -n 's/^    "key": "\(.*\)",$/\1/p'
}

# _unionfs_given OPTION: the value that the command line has for it.
_unionfs_given() {
  local i
  for ((i = 2; i < COMP_CWORD; i++)); do
    [[ ${COMP_WORDS[i - 1]} != "$1" ]] || printf '%s\n' "${COMP_WORDS[i]}"
  done
}

# _unionfs_snapshot PREVIOUS ARGUMENT: the words after "snapshot".
_unionfs_snapshot() {
  local verb=${COMP_WORDS[2]-}
  if ((COMP_CWORD == 2)); then
    _unionfs_reply '' -W 'prepare view commit capture mount umount mounts release rm ls info usage
      diff label cleanup' -- "$2"
    return
  fi
  case $1 in
    --root)
      _unionfs_directories '' "$2"
      return
      ;;
    --driver)
      _unionfs_reply '' -W 'overlay' -- "$2"
      return
      ;;
    --storage-opt | --label | --size | -o) return ;;
  esac
  case $verb:$2 in
    mount:-*) _unionfs_reply '' -W '-o --root --driver --storage-opt' -- "$2" ;;
    umount:-*) _unionfs_reply '' -W '--lazy --root --driver --storage-opt' -- "$2" ;;
    prepare:-*)
      _unionfs_reply '' -W '--size --label --root --driver --storage-opt --json' -- "$2"
      ;;
    view:-* | commit:-* | capture:-*)
      _unionfs_reply '' -W '--label --root --driver --storage-opt --json' -- "$2"
      ;;
    *:-*) _unionfs_reply '' -W '--root --driver --storage-opt --json --help' -- "$2" ;;
    umount:*) _unionfs_directories '' "$2" ;;
    *)
      local IFS=$'\n'
      _unionfs_reply '' -W "$(_unionfs_keys)" -- "$2"
      [[ $verb != mount ]] || _unionfs_directories '' "$2"
      ;;
  esac
}

# _unionfs_run PREVIOUS ARGUMENT: the words after "run", of which the first that is no option
# nor an option's value is the image.
_unionfs_run() {
  local i word image=''
  for ((i = 2; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    case $word in
      --rm | --interactive | --tty | --detach | --read-only | --*=*) ;;
      --* | -[vewu]) ((i++)) ;;
      -*) ;;
      *) image=$word && break ;;
    esac
  done
  if [[ -n $image ]]; then
    compopt -o filenames
    _unionfs_reply '' -f -- "$2"
    return
  fi
  case $1 in
    -v | --volume | --root) _unionfs_directories '' "$2" ;;
    --driver) _unionfs_reply '' -W 'overlay' -- "$2" ;;
    -u | --user) _unionfs_reply '' -u -- "$2" ;;
    --mount) _unionfs_reply '' -W 'type=bind, type=volume, type=tmpfs,' -- "$2" ;;
    --name | --tmpfs | -e | --env | -w | --workdir | --entrypoint | --hostname | --storage-opt) ;;
    *)
      if [[ $2 == -* ]]; then
        _unionfs_reply '' -W '--rm -i -t -d -v -e -w -u --interactive --tty --detach --name --volume
          --tmpfs --mount --env --workdir --user --entrypoint --hostname --read-only --root --driver
          --storage-opt --help' -- "$2"
      else
        local IFS=$'\n'
        _unionfs_reply '' -W "$(_unionfs_images; _unionfs_keys)" -- "$2"
      fi
      ;;
  esac
}

_unionfs_images() {
  local root driver
  root=$(_unionfs_given --root) driver=$(_unionfs_given --driver)
  unionfs image ls --quiet ${root:+--root "$root"} ${driver:+--driver "$driver"} 2>/dev/null
}

# _unionfs_image PREVIOUS ARGUMENT: the words after "image".
_unionfs_image() {
  local verb=${COMP_WORDS[2]-}
  if ((COMP_CWORD == 2)); then
    _unionfs_reply '' -W 'import export ls rm history inspect cleanup' -- "$2"
    return
  fi
  case $1 in
    --root)
      _unionfs_directories '' "$2"
      return
      ;;
    --driver)
      _unionfs_reply '' -W 'overlay' -- "$2"
      return
      ;;
    --format)
      _unionfs_reply '' -W 'oci-archive docker-archive' -- "$2"
      return
      ;;
    --compression)
      _unionfs_reply '' -W 'gzip zstd none' -- "$2"
      return
      ;;
    --storage-opt) return ;;
  esac
  case $verb:$2 in
    import:-* | ls:-*)
      _unionfs_reply '' -W '--quiet --root --driver --storage-opt --json' -- "$2"
      ;;
    export:-*)
      _unionfs_reply '' -W '--format --compression --quiet --root --driver --storage-opt' -- "$2"
      ;;
    history:-*)
      _unionfs_reply '' -W '--no-trunc --root --driver --storage-opt --json' -- "$2"
      ;;
    *:-*) _unionfs_reply '' -W '--root --driver --storage-opt --json --help' -- "$2" ;;
    import:*)
      compopt -o filenames
      _unionfs_reply '' -f -- "$2"
      ;;
    *)
      local IFS=$'\n'
      _unionfs_reply '' -W "$(_unionfs_images)" -- "$2"
      if [[ $verb == export ]]; then
        compopt -o filenames
        _unionfs_reply '' -f -- "$2"
      fi
      ;;
  esac
}

_unionfs_volumes() {
  local root
  root=$(_unionfs_given --root)
  unionfs volume ls --quiet ${root:+--root "$root"} 2>/dev/null
}

# _unionfs_volume PREVIOUS ARGUMENT: the words after "volume".
_unionfs_volume() {
  local verb=${COMP_WORDS[2]-} store='--root --driver --storage-opt'
  if ((COMP_CWORD == 2)); then
    _unionfs_reply '' -W 'create inspect ls rm prune mount umount backup restore clone snapshot
      cleanup' -- "$2"
    return
  fi
  case $1 in
    --root)
      _unionfs_directories '' "$2"
      return
      ;;
    --driver)
      _unionfs_reply '' -W 'overlay block reflink' -- "$2"
      return
      ;;
    --opt)
      compopt -o nospace
      _unionfs_reply '' -W 'type= o= device= size= from=' -- "$2"
      return
      ;;
    --filter)
      compopt -o nospace
      _unionfs_reply '' -W 'dangling= driver= label= label!= name=' -- "$2"
      return
      ;;
    --format)
      _unionfs_reply '' -W 'json table' -- "$2"
      return
      ;;
    --compression)
      _unionfs_reply '' -W 'gzip zstd none' -- "$2"
      return
      ;;
    --storage-opt | --label | --id | --name | -o) return ;;
  esac
  case $verb:$2 in
    create:-*) _unionfs_reply '' -W "--opt --label --name $store --json" -- "$2" ;;
    inspect:-*) _unionfs_reply '' -W "--format $store" -- "$2" ;;
    ls:-*) _unionfs_reply '' -W "--quiet --filter --format $store --json" -- "$2" ;;
    rm:-*) _unionfs_reply '' -W "--force $store" -- "$2" ;;
    prune:-*) _unionfs_reply '' -W "--all --force --filter $store --json" -- "$2" ;;
    mount:-*) _unionfs_reply '' -W "--id -o --options $store" -- "$2" ;;
    umount:-*) _unionfs_reply '' -W "--lazy $store" -- "$2" ;;
    backup:-*) _unionfs_reply '' -W "--compression --quiet $store" -- "$2" ;;
    restore:-*) _unionfs_reply '' -W "--quiet $store" -- "$2" ;;
    *:-*) _unionfs_reply '' -W "$store --json --help" -- "$2" ;;
    umount:*) _unionfs_directories '' "$2" ;;
    create:* | ls:* | prune:* | cleanup:*) ;;
    *)
      local IFS=$'\n'
      _unionfs_reply '' -W "$(_unionfs_volumes)" -- "$2"
      case $verb in
        mount) _unionfs_directories '' "$2" ;;
        backup | restore)
          compopt -o filenames
          _unionfs_reply '' -f -- "$2"
          ;;
      esac
      ;;
  esac
}

# _unionfs_plugin PREVIOUS ARGUMENT: the words after "plugin".
_unionfs_plugin() {
  if ((COMP_CWORD == 2)); then
    _unionfs_reply '' -W 'volume' -- "$2"
    return
  fi
  case $1:$2 in
    --root:*) _unionfs_directories '' "$2" ;;
    --driver:*) _unionfs_reply '' -W 'overlay block reflink' -- "$2" ;;
    --socket:*)
      compopt -o filenames
      _unionfs_reply '' -f -- "$2"
      ;;
    --storage-opt:*) ;;
    *) _unionfs_reply '' -W '--socket --root --driver --storage-opt --help' -- "$2" ;;
  esac
}

_unionfs() {
  local piece=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT}
  local argument=${line##*[[:blank:]]} command=${COMP_WORDS[1]-}
  local previous=${line%"$argument"}
  previous=${previous%"${previous##*[![:blank:]]}"}
  previous=${previous##*[[:blank:]]}
  [[ $piece == *[!=:]* ]] || piece=''
  local _unionfs_cut=$((${#argument} - ${#piece}))
  COMPREPLY=()

  if [[ $command == run ]] && ((COMP_CWORD > 1)); then
    _unionfs_run "$previous" "$argument"
    return
  fi
  if [[ $command == snapshot ]] && ((COMP_CWORD > 1)); then
    _unionfs_snapshot "$previous" "$argument"
    return
  fi
  if [[ $command == image ]] && ((COMP_CWORD > 1)); then
    _unionfs_image "$previous" "$argument"
    return
  fi
  if [[ $command == volume ]] && ((COMP_CWORD > 1)); then
    _unionfs_volume "$previous" "$argument"
    return
  fi
  if [[ $command == plugin ]] && ((COMP_CWORD > 1)); then
    _unionfs_plugin "$previous" "$argument"
    return
  fi
  case $command:$previous in
    umount:* | ls:*) ;;
    *:-o | *:--options)
      _unionfs_options "$argument"
      return
      ;;
    *:--session)
      _unionfs_reply '' -W 'auto device pyfuse3' -- "$argument"
      return
      ;;
  esac
  if ((COMP_CWORD == 1)) && [[ $argument != -* ]]; then
    _unionfs_reply '' -W 'mount umount ls diff run snapshot image volume plugin' -- "$argument"
  fi
  case $command:$argument in
    umount:-*) _unionfs_reply '' -W '--lazy --help --version' -- "$argument" ;;
    umount:*)
      compopt -o filenames
      local IFS=$'\n'
      _unionfs_reply '' -W "$(_unionfs_mounts)" -- "$argument"
      ;;
    ls:*) _unionfs_reply '' -W '--json --help --version' -- "$argument" ;;
    diff:-*) _unionfs_reply '' -W '-o --options --json --help --version' -- "$argument" ;;
    *:-*)
      _unionfs_reply '' -W '-o -f -d -v --options --foreground --debug --verbose --session
        --help --version' -- "$argument"
      ;;
    *) _unionfs_directories '' "$argument" ;;
  esac
}

complete -F _unionfs unionfs
