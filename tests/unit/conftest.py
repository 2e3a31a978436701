"""A modelled NIC and the driver on it; what the driver took must be given back at the end."""

import pytest
from model82574 import Model

from hwrx.nic.e1000e import E1000e


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def nic(model):
    with E1000e(model, rx=64, tx=64) as nic:
        yield nic
    assert model.closed
    assert model.regions == []
    assert not model.bus_master
