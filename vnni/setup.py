from setuptools import Extension, setup

# one wheel for every Python from 3.10 on
OPTIONS = {"bdist_wheel": {"py_limited_api": "cp310"}}

setup(
    ext_modules=[
        Extension(
            "dmtd_vnni",
            ["dmtd_vnni.c"],
            # not linked with OpenMP, so that PyTorch's is found in the process and no other waits
            # on the same cores; sums are not contracted, so that they are the same for any number
            # of positions
            extra_compile_args=["-O3", "-fopenmp", "-ffp-contract=off"],
            py_limited_api=True,
        )
    ],
    options=OPTIONS,
)
