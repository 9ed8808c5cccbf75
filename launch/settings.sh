# Sourced by the launchers for clusters: settings as --name=value, then --dry-run
# if nothing shall be run but shown, then -- and the command.
#
# The launcher fills these before it calls read_settings "$@", which leaves the
# words after -- in `command`:
#   needed    [name]="an example", settings without which there is no run
#   setting   [name]="the default", all others
#   pattern   [name]="an extended regular expression", for values that are held
#             to one; `whole` and `word` are two common ones

declare -A needed=() setting=() pattern=()
command=()
dry_run=0
whole='0|[1-9][0-9]{0,5}'
word='[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?'

fail() {
  echo "error: $*" >&2
  exit 1
}

read_settings() {
  local name value missing=() example=()
  while (($#)); do
    case "$1" in
      --) shift; command=("$@"); break ;;
      --dry-run) dry_run=1 ;;
      --*=*)
        name="${1%%=*}" name="${name#--}" value="${1#*=}"
        # Not each string can be a subscript.
        [[ "$name" =~ ^[a-z-]+$ && -n "${needed[$name]-}${setting[$name]+known}" ]] \
          || fail "--$name: no such setting; there are $(names)"
        [[ "$value" =~ ^(${pattern[$name]-.*})$ && "$value" != *$'\n'* ]] \
          || fail "--$name=$(quoted "$value"): it must be like ${pattern[$name]-one line}"
        setting[$name]="$value"
        ;;
      *) fail "$1: give settings as --name=value, and the command after --" ;;
    esac
    shift
  done
  for name in $(sorted "${!needed[@]}"); do
    example+=("--$name=${needed[$name]}")
    [[ -n "${setting[$name]-}" ]] || missing+=("--$name")
  done
  ((${#command[@]})) || missing+=("the command after --")
  ((${#missing[@]} == 0)) || fail "missing: $(joined "${missing[@]}"); such as" \
    "bash launch/$(basename "$0") ${example[*]-}${example:+ }-- python" \
    "launch/train.py --config=configs/cambrian_4b.py --workdir=/runs/first"
}

names() { joined $(sorted "${!needed[@]}" "${!setting[@]}" | sed 's/^/--/') --dry-run; }

sorted() { printf '%s\n' "$@" | sort -u; }

joined() {
  local first="$1" word
  shift
  printf '%s' "$first"
  for word in "$@"; do printf ', %s' "$word"; done
}

# The words as a shell takes them, in one line.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ "$word" =~ ^[-A-Za-z0-9_./:=,@%+]+$ ]]; then
      line+=" $word"
    else
      line+=" ${word@Q}"
    fi
  done
  echo "${line# }"
}

# Runs the words, or shows them.
run() {
  if ((dry_run)); then
    quoted "$@"
  else
    "$@"
  fi
}
