"""Fixtures are in `tests.fixtures`, which workers load: handing tests out needs no library."""

import gc
import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # here and in processes that tests start: a core each

gc.disable()  # what is imported stays: looking for garbage among it takes seconds


def pytest_configure(config):
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
