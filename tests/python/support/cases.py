"""Named settings, one of each way to group and weigh, and logits for them."""

import torch

#: Settings of gkd.loss by name; "target": the call takes one.
MODES = {
    "gkd": {},
    "gkd_target": {"target": True},
    "authors": {"rank_by": "student", "group_size": 7, "target": True},
    "student_mass": {"rank_by": "student", "threshold": 0.5, "temperature": 1.0},
    "kd": {"coupled": True, "primary_weight": 1.0, "secondary_weight": 1.0},
    "dkd": {"group_size": 0, "primary_weight": 0.0, "secondary_weight": 2.0, "target": True},
    "target_alone": {"group_size": 0, "secondary_weight": 1.0, "target": True},
    "gdkd": {"group_size": 5, "secondary_weight": 2.0, "binary_weight": -0.5},
    "group_temperature": {"group_temperature": 1.5, "threshold": 0.8, "secondary_weight": 1.0},
    "student_group_temperature": {"group_temperature": 8.0, "threshold": 0.4, "rank_by": "student"},
    "mass_and_size": {"threshold": 0.6, "group_size": 9, "group_temperature": 3.0, "target": True},
    "size_and_mass": {"threshold": 0.1, "group_size": 300, "rank_by": "student"},
    "everything": {"threshold": 1.0, "temperature": 8.0, "secondary_weight": 3.0},
}


def settings_of(mode):
    """(settings, whether a target goes with them)."""
    settings = dict(MODES[mode])
    return settings, settings.pop("target", False)


def logits(shape, dtype=torch.float32, device="cpu", teacher_dtype=None):
    """A student and a teacher, drawn on the CPU so that every device sees the same numbers."""
    student = (torch.randn(shape) * 3).to(dtype)
    teacher = (torch.randn(shape) * 6).to(teacher_dtype or dtype)
    return student.to(device), teacher.to(device)


def targets(shape, device="cpu"):
    """One class per row."""
    return torch.randint(shape[1], (shape[0],)).to(device)
