"""Make src/dray/linux/seccomp/syscalls.tsv from the kernel's exported headers.

    python tools/syscall_table.py INCLUDE_X86 INCLUDE_AARCH64 INCLUDE_ARM > src/dray/linux/seccomp/syscalls.tsv

Each argument is an include directory that holds `asm/unistd.h` of that architecture (Debian: the packages
linux-libc-dev, linux-libc-dev-arm64-cross and linux-libc-dev-armhf-cross). The C preprocessor does the reading.
Calls younger than those headers are listed in NEWER, by the number they were given in the kernel's own
`syscall.tbl` files: since Linux 5.1 a new call has the same number on every architecture.
"""

import re
import subprocess
import sys

COLUMNS = ("x86_64", "x86", "x32", "aarch64", "arm")
X32_BIT = 0x40000000

NEWER = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
    "listns": 470,
}
NEWER_X86_64 = {"uretprobe": 335, "uprobe": 336}


def table(header: str, include: str, defines: tuple[str, ...] = ()) -> dict[str, int]:
    """Return name → number of one header, as the preprocessor evaluates it."""
    options = [f"-D{name}" for name in defines]
    base = ["cpp", "-undef", "-nostdinc", f"-I{include}", *options, "-D__CHAR_BIT__=8"]
    source = f"#include <{header}>\n"
    macros = subprocess.run([*base, "-dM"], input=source, capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^#define __(?:ARM_)?NR_([a-z_]\w*) ", macros, re.MULTILINE)
    skip = {"syscalls", "arch_specific_syscall"}
    names = [name for name in names if name not in skip]
    prefix = {name: "__ARM_NR_" if f"__ARM_NR_{name} " in macros else "__NR_" for name in names}
    source += "".join(f"=={name} {prefix[name]}{name}\n" for name in names)
    lines = subprocess.run([*base, "-P"], input=source, capture_output=True, text=True, check=True).stdout
    numbers = {}
    for name, expression in re.findall(r"^==(\w+) (.*)$", lines, re.MULTILINE):
        if not re.fullmatch(r"[0-9a-fx()+ ]+", expression):
            sys.exit(f"{header}: {name} is not a number: {expression}")
        numbers[name] = eval(expression)  # digits, hexadecimal, + and brackets only: checked above
    return numbers


def main() -> None:
    """Write the table to stdout."""
    x86, aarch64, arm = sys.argv[1:4]
    tables = {
        "x86_64": table("asm/unistd_64.h", x86, ("__x86_64__",)),
        "x86": table("asm/unistd_32.h", x86, ("__i386__",)),
        "x32": table("asm/unistd_x32.h", x86, ("__x86_64__", "__ILP32__", f"__X32_SYSCALL_BIT={X32_BIT:#x}")),
        "aarch64": table("asm/unistd.h", aarch64, ("__aarch64__", "__LP64__", "__BITS_PER_LONG=64")),
        "arm": table("asm/unistd.h", arm, ("__arm__", "__ARM_EABI__")),
    }
    for column, numbers in tables.items():
        for name, number in NEWER.items():
            numbers.setdefault(name, number | (X32_BIT if column == "x32" else 0))
    for name, number in NEWER_X86_64.items():
        tables["x86_64"].setdefault(name, number)
    print("# System call numbers of Linux, made by tools/syscall_table.py; -1: the architecture has no such call.")
    print("name", *COLUMNS, sep="\t")
    for name in sorted(set().union(*tables.values())):
        print(name, *(tables[column].get(name, -1) for column in COLUMNS), sep="\t")


if __name__ == "__main__":
    main()
