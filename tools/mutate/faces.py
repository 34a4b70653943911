"""Bugs in what brings a teacher's head: class centres and checkpoints."""

from .mutant import Mutant

FOLDER = "tests/python/faces"
CENTERS, CONVERT = f"{FOLDER}/test_centers.py", f"{FOLDER}/test_convert.py"

FACES = [
    Mutant(
        name="centers-of-long-embeddings",
        fault="a long embedding counts more than a short one",
        file="python/gkd/class_centers.py",
        old="index_add_(0, labels, F.normalize(rows, dim=1))",
        new="index_add_(0, labels, rows)",
        by=(f"{CENTERS} -k values",),
    ),
    Mutant(
        name="centers-shard-start",
        fault="ranks after those with a class more begin where they would without",
        file="python/gkd/class_centers.py",
        old="self.class_start = rank * each + min(rank, more)",
        new="self.class_start = rank * each",
        by=(f"{CENTERS} -k ranks",),
    ),
    Mutant(
        name="centers-padding-counts",
        fault="rows that fill up a rank's batch are counted as class 0's",
        file="python/gkd/_center_rows.py",
        old="torch.cat([y[:n] for _, y, n in pairs])",
        new="torch.cat([y for _, y, n in pairs])",
        by=(f"{CENTERS} -k ranks",),
    ),
    Mutant(
        name="convert-last-shard-missing",
        fault="the last rank's shard may be missing unnoticed",
        file="python/gkd/_checkpoints.py",
        old="if size != (due := each + (rank < more)):",
        new="if size < (due := each) and rank > more:",
        by=(f"{CONVERT} -k missing",),
    ),
    Mutant(
        name="convert-untransposed",
        fault="AdaFace's head stays [D, C]",
        file="python/gkd/_checkpoints.py",
        old='(path, state, ("head.kernel",)).T',
        new='(path, state, ("head.kernel",))',
        by=(f"{CONVERT} -k layouts",),
    ),
    Mutant(
        name="convert-executes",
        fault="a pickle may call what it likes",
        file="python/gkd/_checkpoints.py",
        old="weights_only=True",
        new="weights_only=False",
        by=(f"{CONVERT} -k executed",),
    ),
]
