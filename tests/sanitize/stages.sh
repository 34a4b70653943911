# What scripts of many stages share: `stages` picks from them, `out` is the folder of their output.

# stage NAME COMMAND...: runs it where NAME's first word is picked, keeps its output in a file, and
# sets `failed` where it fails.
stage() {
  local name=$1
  shift
  [[ " $stages " == *" ${name%%-*} "* ]] || return 0
  local from=$SECONDS rc=0
  "$@" >"$out/$name.txt" 2>&1 || rc=$?
  echo "$name: exit $rc after $((SECONDS - from)) s" | tee -a "$out/summary.txt"
  [ "$rc" -eq 0 ] || { failed=1; tail -20 "$out/$name.txt"; }
}

# caught WORDS COMMAND...: succeeds when the command fails and says WORDS, as a sanitizer does that
# has found a planted error.
caught() {
  local words=$1 said rc=0
  shift
  said=$("$@" 2>&1) || rc=$?
  printf '%s\n' "$said"
  [ "$rc" -ne 0 ] || { echo "not caught: $*"; return 1; }
  grep -q -- "$words" <<<"$said" || { echo "exit $rc without the words '$words': $*"; return 1; }
}
