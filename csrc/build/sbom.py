# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of a wheel: what of others is inside its libraries (PEP 770)."""

from __future__ import annotations

from typing import Any


def component(name: str, version: str, licence: str) -> dict[str, Any]:
    """Describe one library, as CycloneDX does."""
    # An identifier of the SPDX list is an id, one of our own a name.
    word = "name" if licence.startswith("LicenseRef") else "id"
    return {
        "type": "library",
        "bom-ref": f"{name}@{version}",
        "name": name,
        "version": version,
        "licenses": [{"license": {word: licence}}],
    }


def sbom(name: str, version: str, built: dict[str, Any]) -> dict[str, Any]:
    """Describe a wheel; no time and no random number, so that two builds agree.

    Args:
        name: of the distribution.
        version: of the distribution.
        built: what setup.py wrote into ``_build_info.json``.

    Returns:
        A CycloneDX 1.6 document, ready for JSON.
    """
    parts = [component("pytorch-stable-headers", built["torch_headers"], "BSD-3-Clause")]
    if built["pybind11"]:
        parts.append(component("pybind11", built["pybind11"], "BSD-3-Clause"))
    if built["cuda"]:
        parts.append(component("cudart-static", built["cuda"], "LicenseRef-NVIDIA-CUDA-EULA"))
    own = component(name, version, "Apache-2.0")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own},
        "components": parts,
        "dependencies": [
            {"ref": own["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]},
            *({"ref": part["bom-ref"]} for part in parts),
        ],
    }
