"""Everything that an attacked process needs, imported once, before it is forked."""

import doors  # noqa: F401
import torch
import victims  # noqa: F401

import amc
import amc.cli
import amc.deliver.evaluate
import amc.deliver.export
import amc.deliver.finetune
import amc.deliver.load
import amc.search
import amc.sweep
import amc.views.pictures  # noqa: F401

torch.set_num_threads(1)
