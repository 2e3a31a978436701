"""A modelled NIC and the driver on it; what the driver took must be given back at the end."""

import pytest
from hypothesis import HealthCheck, settings
from model82574 import Model

from hwrx.nic.e1000e import E1000e

# How long an example takes is the machine's business: other lanes run beside, and a virtual CPU stands still at times
settings.register_profile("hwrx", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hwrx")


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
