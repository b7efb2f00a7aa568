"""The tests on every supported Python and diffusers: `make test-matrix`, or `nox --session "tests-3.12(newest)"`.

Interpreters that are not at hand are skipped.
"""

import nox


nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "virtualenv"
DIFFUSERS = [nox.param("==0.42.0", id="lowest"), nox.param("", id="newest")]


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("diffusers", DIFFUSERS)
def tests(session: nox.Session, diffusers: str) -> None:
    constraints = session.create_tmp() + "/constraints.txt"
    with open("constraints.txt") as pinned, open(constraints, "w") as file:
        file.writelines(line for line in pinned if not line.startswith("diffusers=="))
    session.install("--constraint", constraints, "--editable", ".[test,lora,web,batch]", f"diffusers{diffusers}")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", env={"OMP_NUM_THREADS": "1"})
