"""Bugs in gkd.cache: what is kept, what is found again, what is refused."""

from .mutant import Mutant

FOLDER = "tests/python/cache"
KILL, DAMAGE = f"{FOLDER}/test_kill.py", f"{FOLDER}/test_damage.py"
GROUPS, REFUSALS = f"{FOLDER}/test_group_cache.py", f"{FOLDER}/test_refusals.py"
EMBEDDINGS, WORKERS = f"{FOLDER}/test_embedding_cache.py", f"{FOLDER}/test_workers.py"
PACKAGE = "python/gkd/cache"

CACHE = [
    Mutant(
        name="cache-rows-there-forgotten",
        fault="a writer that goes on does not see the rows that are there",
        file=f"{PACKAGE}/_writer.py",
        old="absent &= index.find(keys.samples, keys.parts)[0] < 0",
        new="absent |= index.find(keys.samples, keys.parts)[0] < 0",
        by=(f"{KILL} -k ten_times",),
    ),
    Mutant(
        name="cache-visible-half",
        fault="a batch has a name that readers look for before it is whole",
        file=f"{PACKAGE}/_files.py",
        old='hidden = directory / f"{_hidden(writer)}{number}"',
        new="hidden = directory / f\"{writer:05d}-{number:06d}-{'0' * 32}.arrow\"",
        by=(f"{KILL} -k moment",),
    ),
    Mutant(
        name="cache-name-before-bytes",
        fault="a batch gets its name while its bytes are in the system's memory alone",
        file=f"{PACKAGE}/_files.py",
        old="            os.fsync(self._file.fileno())\n",
        new="",
        by=(f"{KILL} -k synced",),
    ),
    Mutant(
        name="cache-beginnings-stay",
        fault="what a killed writer began is never removed",
        file=f"{PACKAGE}/_writer.py",
        old="                path.unlink()",
        new="                path.exists()",
        by=(f"{KILL} -k moment",),
    ),
    Mutant(
        name="cache-number-twice",
        fault="after a batch was deleted, a new one takes the number of another",
        file=f"{PACKAGE}/_writer.py",
        old="next(n for n in range(len(self._used) + 1) if n not in self._used)",
        new="len(self._used)",
        by=(f"{DAMAGE} -k truncated",),
    ),
    Mutant(
        name="cache-two-of-one-number",
        fault="two processes may be the same writer",
        file=f"{PACKAGE}/_files.py",
        old="fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        new="fcntl.lockf(self._file, fcntl.LOCK_UN)",
        by=(f"{KILL} -k one_process",),
    ),
    Mutant(
        name="cache-digest-of-beginning",
        fault="verify reads the first piece of a file alone",
        file=f"{PACKAGE}/_files.py",
        old="while chunk := file.read(_CHUNK):",
        new="if chunk := file.read(_CHUNK):",
        by=(f"{DAMAGE} -k far",),
    ),
    Mutant(
        name="cache-doubles-unseen",
        fault="two runs that overlap by one key are not seen to",
        file=f"{PACKAGE}/_keys.py",
        old="if (codes[1:] < (codes + runs.length)[:-1]).any():",
        new="if (codes[1:] < (codes + runs.length)[:-1] - 1).any():",
        by=(f"{FOLDER}/test_keys.py -k dict",),
    ),
    Mutant(
        name="cache-end-of-run",
        fault="a key just past the end of a run is found in it",
        file=f"{PACKAGE}/_keys.py",
        old="(step < self._length[at])",
        new="(step <= self._length[at])",
        by=(f"{FOLDER}/test_keys.py -k dict",),
    ),
    Mutant(
        name="cache-gather-in-file-order",
        fault="rows that lie together in a file are taken to be together in the batch",
        file=f"{PACKAGE}/_groups.py",
        old=" and (to[1:] == to[:-1] + sizes[:-1]).all()",
        new="",
        by=(f"{GROUPS} -k any_order",),
    ),
    Mutant(
        name="cache-maps-inherited",
        fault="a fork reads through the parent's maps",
        file=f"{PACKAGE}/_reader.py",
        old="if self._process != os.getpid():",
        new="if self._process == 0:",
        by=(f"{WORKERS} -k fork_maps",),
    ),
    Mutant(
        name="cache-files-stay-open",
        fault="every batch keeps a file descriptor",
        file=f"{PACKAGE}/_files.py",
        old="with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:",
        new="source = read.__dict__.setdefault(path, pa.memory_map(str(path)))\n"
        "        with pa.ipc.open_file(source) as file:",
        by=(f"{GROUPS} -k descriptors",),
    ),
    Mutant(
        name="cache-class-twice",
        fault="a class that is twice in a row is not seen",
        file=f"{PACKAGE}/_rows.py",
        old="stays = (step <= 0) & ~first[:-1]",
        new="stays = (step < 0) & ~first[:-1]",
        by=(f"{REFUSALS} -k test_groups",),
    ),
    Mutant(
        name="cache-bfloat16-bits",
        fault="NaN is looked for in the bits of bfloat16 as if they were numbers",
        file=f"{PACKAGE}/_dtypes.py",
        old='if self.name != "bfloat16":',
        new="if self.name:",
        by=(f"{REFUSALS} -k every_dtype",),
    ),
    Mutant(
        name="cache-other-settings",
        fault="a batch of other settings in the folder is read",
        file=f"{PACKAGE}/_files.py",
        old="check_metadata=True",
        new="check_metadata=False",
        by=(f"{DAMAGE} -k another_cache",),
    ),
    Mutant(
        name="cache-other-group-temperature",
        fault="T is compared, and T_g, which it stands for, is not",
        file=f"{PACKAGE}/_asked.py",
        old='fields |= {"temperature", "group_temperature"}',
        new='fields |= {"temperature"}',
        by=(f"{REFUSALS} -k loss_reads",),
    ),
    Mutant(
        name="cache-no-copy",
        fault="what waits for a batch is the caller's memory",
        file=f"{PACKAGE}/_embeddings.py",
        old="self._add(keys, rows.clone(), ",
        new="self._add(keys, rows, ",
        by=(f"{EMBEDDINGS} -k come_back",),
    ),
    Mutant(
        name="rest-with-its-group",
        fault="the rest's sum holds the group too",
        file="python/gkd/_reference_groups.py",
        old="outside = torch.where(inside, -INF, ",
        new="outside = torch.where(invalid.unsqueeze(1), -INF, ",
        by=(f"{FOLDER}/test_teacher_group.py -k is_the_group",),
    ),
]
