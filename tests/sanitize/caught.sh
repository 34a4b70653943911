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
