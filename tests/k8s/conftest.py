"""The bundle of the service's tests."""

from tests.serve.conftest import bundle as bundle
