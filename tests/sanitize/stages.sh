# What scripts of many stages share: `stages` picks from them, `out` is the folder of their output,
# `summary` the file of their lines. Where `limit` is set, a stage is stopped after so many seconds;
# the functions it runs must be exported. `where` says what a line holds for; `page`, a function,
# makes more of the summary.

# picked NAME...: whether `stages` has one of the names, or words that it begins with.
picked() {
  local name pick
  for name in "$@"; do
    for pick in $stages; do [[ $name != "$pick" && $name != "$pick"-* ]] || return 0; done
  done
  return 1
}

# note NAME WORDS...: the summary's line of that name, in place of an earlier one.
note() {
  touch "$summary"
  { grep -v "^$1: " "$summary"; echo "$1: ${*:2}"; } >"$summary.new"
  mv "$summary.new" "$summary"
}

# counted FILE: what the test programs and tools in it counted, in one line.
counted() {
  grep -hE '^(=+ )?[0-9]+ (passed|failed|skipped|deselected|error).* in [0-9]|^no tests ran|^counted: |tests? passed,|^\[  (PASSED|SKIPPED|FAILED) +\] [0-9]+ test|ERROR SUMMARY' \
    "$1" | sed -E 's/^counted: |^=+ | =+$|, listed below:$|\.$//g; s/^\[  ([A-Z]+) +\]/\1/' | paste -sd ';' | sed 's/;/; /g'
}

# stage NAME COMMAND...: runs it where it is picked, keeps its output in a file, and sets `failed`
# where it fails.
stage() {
  local name=$1 from=$SECONDS rc=0 how took
  shift
  picked "$name" || return 0
  note "$name" "FAILED, stopped from outside${where:+ $where}"  # until this line is replaced below
  ! declare -F page >/dev/null || page
  if [ -n "${limit:-}" ]; then
    # `timeout` runs no functions, a shell does. KILL, of the whole group: a program that hangs may
    # not hear TERM.
    timeout --signal=KILL "$limit" bash -c '"$@"' stage "$@" >"$out/$name.txt" 2>&1 || rc=$?
  else
    "$@" >"$out/$name.txt" 2>&1 || rc=$?
  fi
  took=$((SECONDS - from))
  how="exit $rc"
  [ "$rc" -eq 0 ] || how="FAILED, exit $rc"
  [ "$rc" -ne 137 ] || [ "$took" -lt "${limit:-$((took + 1))}" ] || how="FAILED, stopped by its limit"
  how="$how after $took s${where:+ $where} $(counted "$out/$name.txt")"
  note "$name" "${how% }"
  ! declare -F page >/dev/null || page
  grep "^$name: " "$summary"
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
