"""The counters of the CUDA kernels count: the finder of loops and paths on a short listing whose
costs are known, and the checks against budget and held counts."""

import pytest

from benchmarks.budget import Kernel
from benchmarks.control_flow import functions, loops, paths
from benchmarks.count_cuda import quantities, risen
from benchmarks.machine_code import read_kernels
from benchmarks.model_cuda import CARDS, SHAPES, Model
from benchmarks.sweeps import costs

NAME = "_ZN3gkd4cuda12fused_kernelIfNS0_11SingleBlockELb0ELb0EEEvNS0_9FusedCallIfEE"
#: A loop over rows (RELOAD to DONE) with the passes of float rows: one loop for each maximum, a
#: count, a weighing by mass whose window is visited, and a gradient that stores one vector, in the
#: group or outside of it, aligned or not. GATHER, over gathered values, is no pass; PARTED is where
#: a warp goes whose lanes have parted.
LISTING = """
.RELOAD
  MOV R1, c[0x0][0x28]
.TEACHER
  LDS.128 R4, [R2]
  LDS.128 R8, [R2+0x1000]
  FMNMX R12, R4, R8, !PT
  @!P0 BRA `(.TEACHER)
.STUDENT
  LDS.128 R4, [R2]
  LDS.128 R8, [R2+0x1000]
  FMNMX R12, R4, R8, !PT
  FMNMX R13, R5, R9, PT
  @!P0 BRA `(.STUDENT)
.GATHER
  LDS.128 R4, [R2]
  FMNMX R12, R4, R12, !PT
  @!P0 BRA `(.GATHER)
.COUNT
  LDS.128 R4, [R2]
  ATOMS.POPC.INC.32 RZ, [R4]
  ATOMS.POPC.INC.32 RZ, [R5]
  ATOMS.POPC.INC.32 RZ, [R6]
  ATOMS.POPC.INC.32 RZ, [R7]
  @!P0 BRA `(.COUNT)
.WEIGH
  MOV R3, RZ
.VECTOR
  ISETP.GE.AND P0, PT, R38, R92, PT
  @P0 BRA `(.WEIGHED)
  LDS.128 R4, [R2]
  MUFU.EX2 R4, R4
  MUFU.EX2 R5, R5
  MUFU.EX2 R6, R6
  MUFU.EX2 R7, R7
  @!P0 BRA `(.VECTOR)
.WEIGHED
  @!P1 BRA `(.NONE)
.VISIT
  FLO.U32 R7, UR8
  ATOMS.ADD R36, [R31], R36
  @P0 BRA `(.VISIT)
.NONE
  IADD3 R33, R33, 0x800, RZ
  @!P0 BRA `(.WEIGH)
.GRADIENT
  LDS.128 R4, [R2]
  BRA.DIV UR8, `(.PARTED)
  VOTE.ANY P0, P0
  @P0 BRA `(.INSIDE)
  MUFU.EX2 R4, R4
  MUFU.EX2 R5, R5
  MUFU.EX2 R6, R6
  MUFU.EX2 R7, R7
  BRA `(.STORE)
.INSIDE
  LDL R9, [R1]
  MUFU.EX2 R4, R4
  MUFU.EX2 R5, R5
  MUFU.EX2 R6, R6
  MUFU.EX2 R7, R7
  MUFU.EX2 R8, R8
.STORE
  @P1 BRA `(.ALIGNED)
  STG.E desc[UR12][R2.64], R4
  STG.E desc[UR12][R2.64+0x4], R5
  BRA `(.STORED)
.ALIGNED
  STG.E.EF.128 desc[UR12][R2.64], R4
.STORED
  @!P0 BRA `(.GRADIENT)
  MEMBAR.ALL.GPU
  @!P6 BRA `(.RELOAD)
  EXIT
.PARTED
  WARPSYNC.COLLECTIVE R0, `(.PARTED)
  BRA `(.GRADIENT)
"""
PTXAS = f"""ptxas info    : Compiling entry function '{NAME}' for 'sm_90'
ptxas info    : Function properties for {NAME}
    176 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 176 bytes cumulative stack size
"""


def listing(text=LISTING):
    """As nvdisasm prints it: labels as .L_x, and an address before each instruction."""
    out = [f".text.{NAME}:"]
    for k, line in enumerate(text.replace("(.", "(.L_x_").splitlines()):
        if line.startswith("."):
            out.append(f".L_x_{line[1:]}:")
        elif line:
            out.append(f"        /*{16 * k:04x}*/                   {line.strip()} ;")
    return "\n".join(out)


def kernel():
    (found,) = read_kernels(90, "block", listing(), PTXAS)
    return found


def test_costs_of_each_pass():
    found = {(c.loop, c.path): (c.counts["total"], c.classes) for c in kernel().costs}
    assert found == {
        ("maxima 1", "vector"): (4, 8),
        ("maxima 2", "vector"): (5, 8),
        ("count", "vector"): (6, 4),
        # 8 of the vector, and an eighth of what comes once per 32 classes, each kind rounded up.
        ("weigh by mass", "vector"): (9, 4),
        ("weigh by mass", "visit"): (3, 1),
        ("gradient 1", "outside"): (12, 4),
        ("gradient 1", "any"): (13, 4),
    }


def test_streamed_rows_are_read_from_device_memory():
    """As the teacher's maxima, in vectors of an aligned row or in halves of them."""
    aligned = ["  LDG.E.NA.128.CONSTANT R4, [R2]", "  LDG.E.NA.128.CONSTANT R8, [R2+0x1000]"]
    halves = [f"  LDG.E.NA.64.CONSTANT R{r}, [R2]" for r in (4, 6, 8, 10)]
    before = ".TEACHER\n  LDS.128 R4, [R2]\n  LDS.128 R8, [R2+0x1000]"
    after = [".TEACHER", "  @P1 BRA `(.HALVES)", *aligned, "  BRA `(.READ)", ".HALVES", *halves]
    text = listing(LISTING.replace(before, "\n".join([*after, ".READ"])))
    texts = [x.replace("Lb0ELb0", "Lb0ELb1") for x in (text, PTXAS)]
    (found,) = read_kernels(90, "grid", *texts)
    assert found.strategy == "streamed grid"
    maxima = next(c for c in found.costs if c.loop == "maxima 1")
    assert (maxima.counts["total"], maxima.classes) == (6, 8)


def test_what_a_path_holds():
    inside = next(c for c in kernel().costs if c.path == "any")
    assert (inside["mufu"], inside["local"], inside["store_128"]) == (5 / 4, 1 / 4, 1 / 4)
    assert inside["store"] == inside["store_128"], "the path of a row that is not aligned"


def test_loops_nest():
    (blocks,) = functions(listing()).values()
    found = loops(blocks)
    assert len(found) == 9
    rows = max(found, key=lambda loop: len(loop.body))
    assert len(rows.inner) == 6
    assert sorted(len(loop.inner) for loop in found) == [0, 0, 0, 0, 0, 0, 0, 2, 6]


def test_a_path_does_not_go_where_lanes_have_parted():
    (blocks,) = functions(listing()).values()
    gradient = max(loops(blocks), key=lambda loop: (not loop.inner, len(loop.body)))
    assert all("WARPSYNC" not in " ".join(blocks[b].text) for b in gradient.body)
    found = paths(blocks, gradient, lambda p: (("mufu", p["mufu"]), ("store", p["store"])))
    assert sorted(p["total"] for p in found) == [12, 13, 14, 15]


def test_resources():
    found = kernel()
    assert (found.registers, found.stack, found.spills, found.fences) == (128, 176, 20, 1)


def test_a_pass_that_is_not_found_is_a_fault():
    assert "0 loops for moments, 2 expected" in list(kernel().faults({}))


def whole_kernel(**changes):
    """One that has every form of every pass, within the budget."""
    (blocks,) = functions(listing()).values()
    found = {(c.loop, c.path): c for c in costs(blocks, 4)}
    weigh = found["weigh by mass", "vector"]
    outside = found["gradient 1", "outside"]

    def like(cost, loop, path):
        return type(cost)(loop, path, cost.classes, cost.counts.copy())

    every = [found["maxima 1", "vector"], found["maxima 2", "vector"], found["count", "vector"]]
    visit = found["weigh by mass", "visit"]
    every += [weigh, visit, like(visit, "window 1", "visit")]
    for k in (1, 2):
        every += [like(weigh, f"moments {k}", "vector"), like(visit, f"moments {k}", "visit")]
    for k in (1, 2, 3, 4):
        names = ("near", "any") if k % 2 else ("outside", "near", "any")
        every += [like(outside, f"gradient {k}", path) for path in names]
    fields = {"registers": 128, "stack": 0, "spills": 0, "fences": 0, "waits": 1, "costs": every}
    fields |= changes
    return Kernel(90, changes.pop("strategy", "cluster"), "float32", 4, **fields)


VISITS = {("cluster", "float32", "flat"): 0.25, ("cluster", "float32", "small"): 0.0}


def test_total_of_a_row():
    # Maxima 0.5 and 0.625, count 1.5, moments 2.25, a quarter of two visits, gradient 3.
    assert whole_kernel().total("flat", VISITS) == pytest.approx(1.125 + 1.5 + 2.25 + 1.5 + 3)
    assert whole_kernel().total("small", VISITS) == pytest.approx(1.125 + 1.5 + 2.25 + 3)


def test_the_budget_holds_and_can_fail():
    assert list(whole_kernel().faults(VISITS)) == []
    assert list(whole_kernel(registers=129).faults(VISITS)) == ["129 registers, 128 allowed"]
    (fault,) = whole_kernel(fences=29).faults(VISITS)
    assert fault == "29 fences between the passes of a row, 28 allowed"
    (fault,) = whole_kernel(waits=0).faults(VISITS)
    assert fault == "no wait for the kernel before, which may still run"
    for kind in ("local", "double"):
        spoilt = whole_kernel()
        spoilt.costs[-1].counts[kind] = 1
        assert f"1 {kind} instructions in gradient 4, any" in list(spoilt.faults(VISITS))
    later = whole_kernel()
    later.architecture = 100
    later.costs[-1].counts["local"] = 1
    (fault,) = later.faults(VISITS)
    assert fault == "1 local instructions in gradient 4, any"
    later.dtype = "bfloat16"
    later_visits = {(s, "bfloat16", row): n for (s, _, row), n in VISITS.items()}
    assert list(later.faults(later_visits)) == []
    later.costs[-1].counts["local"] = 2
    later.costs[2].counts["local"] = 1
    assert len(list(later.faults(later_visits))) == 2
    longer = whole_kernel()
    longer.costs[2].counts["total"] = 400
    assert len(list(longer.faults(VISITS))) == 2


def launch(instructions, **memory):
    empty = {"requests": 1, "wavefronts": 1, "sectors": 0, "bytes": 128, "loops": 0}
    names = ("shared.atomic", "shared.load", "shared.store", "global.store", "global.load")
    counts = {name: {**empty, **memory.get(name.replace(".", "_"), {})} for name in names}
    return {"warps": 8, "warp_instructions": instructions, "memory": counts}


def test_counts_of_two_lengths():
    long = launch(
        {"fp32_fma": 5000, "move": 9999, "fp64": 40, "barrier": 80},
        shared_atomic={"requests": 155, "loops": 4},
        global_store={"sectors": 800, "bytes": 4 * 3168},
    )
    short = launch({"fp32_fma": 3000, "move": 1, "fp64": 40, "barrier": 80})
    found = dict(quantities(long, short, 3200, 1600, 4))
    assert found["instructions_per_class"] == pytest.approx(40)
    assert found["instructions_per_row"] == pytest.approx(5120 - 4000)
    assert (found["double_per_class"], found["double_per_row"]) == (0, 40)
    assert found["barriers_per_row"] == 10
    assert found["window_visits_per_class"] == pytest.approx(2)
    assert found["sectors_per_32_bytes_stored"] == pytest.approx(800 / 396)
    assert found["wavefronts_per_128_bytes_load"] == 1
    assert found["global_elements_per_class"] == 1


def test_a_count_that_rose_is_named():
    held = {("block", "float32", "flat", "barriers_per_row"): 20.0}
    assert list(risen(dict.fromkeys(held, 20.9), held)) == []
    (fault,) = risen(dict.fromkeys(held, 21.1), held)
    assert fault == "block float32 flat barriers_per_row: 21.10, was 20.00"
    assert len(list(risen({("grid", "float32", "flat", "barriers_per_row"): 1.0}, held))) == 1


def test_the_model_follows_instructions_and_memory():
    def ratio(instructions, card, weighing=0.0, shape=SHAPES[1], row="flat"):
        counts = {
            (s, d, what): weighing if what == "vector" else instructions
            for s in ("block", "cluster", "grid", "streamed cluster", "streamed grid")
            for d in ("float32", "bfloat16")
            for what in ("flat", "small", "vector")
        }
        model = Model(counts, {"block": 7000.0, "cluster": 10000.0, "grid": 18000.0})
        return model.ratio(card, *shape, row)[0]

    h100, h200 = CARDS[:2]
    assert 1 < ratio(10, h100) < ratio(150, h100) < ratio(300, h100)
    assert ratio(300, h200) == pytest.approx(ratio(300, h100) * 4.8 / 3.35, rel=0.05)
    # Every row of 2,059,906 is weighed, 1.6% of those of 10,000, and no small group of either.
    assert ratio(100, h200, 50, SHAPES[3]) == ratio(150, h200, 0, SHAPES[3])
    assert ratio(100, h200) < ratio(100, h200, 50) < ratio(101, h200)
    assert ratio(100, h200, 50, row="small") == ratio(100, h200, row="small")
