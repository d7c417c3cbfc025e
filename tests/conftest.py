import pytest
import torch
from toy import toy_dataset

torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring


@pytest.fixture(scope="session")
def toy():
    return toy_dataset()
