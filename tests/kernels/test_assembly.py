"""Loops and loads read from listings with the shapes that compilers make."""

import pytest

from moelstrom.kernels.assembly import (
    BULK_BYTES,
    Instruction,
    flow_graph,
    main_loops,
    parse_amdgcn,
    parse_sass,
)


def _ops(body: list[Instruction]) -> list[str]:
    return [i.op for i in body if i.load_bytes]


def _sass(*lines: str) -> list[Instruction]:
    numbered = (f"  /*{16 * n:04x}*/  {line} ;  /* 0x0 */" for n, line in enumerate(lines))
    return parse_sass("\n".join(numbered))


@pytest.mark.parametrize(
    ("op", "size"),
    [
        ("LDG.E.U16.CONSTANT", 2),
        ("LDG.E", 4),
        ("LDG.E.LTC128B.64", 8),
        ("LDGSTS.E.BYPASS.LTC128B.128", 16),
        ("LDG.E.ENL2.256", 32),
        ("UTMALDG.2D.2CTA", BULK_BYTES),
        ("LDS.128", 0),
        ("LDGDEPBAR", 0),
        ("LDL.64", 0),
        ("global_load_ushort", 2),
        ("global_load_short_d16_hi", 2),
        ("global_load_ubyte_d16", 1),
        ("buffer_load_dword", 4),
        ("global_load_lds_dwordx4", 16),
        ("buffer_load_dwordx3", 12),
        ("s_load_dwordx8", 0),
        ("scratch_load_dword", 0),
        ("ds_read_b128", 0),
    ],
)
def test_load_bytes(op: str, size: int) -> None:
    assert Instruction(op).load_bytes == size


@pytest.mark.parametrize("op", ["HGMMA.64x128x16.F32.BF16", "UTCHMMA", "QGMMA.64x8", "IMMA.16832"])
def test_matrix(op: str) -> None:
    assert Instruction(op).matrix and not Instruction("HMNMX2").matrix


def test_main_loop_with_an_outlined_wait() -> None:
    # A persistent loop (0x0-0x70) around the K loop (0x20-0x50), whose wait spins past the end.
    code = _sass(
        "LDG.E R0, [R2]",
        "LDG.E.64 R0, [R2]",
        "LDGSTS.E.128 [R1], [R2.64]",
        "@!P0 BRA 0x90",
        "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24",
        "@P1 BRA 0x20",
        "STG.E [R2], R3",
        "@P2 BRA 0x0",
        "EXIT",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1]",
        "@!P0 BRA 0x90",
        "BRA 0x40",
    )
    in_loop, body = main_loops(flow_graph(code))
    assert in_loop and _ops(body) == ["LDGSTS.E.128"]
    # Without the branch that closes the K loop, the persistent loop is the innermost.
    code[5] = Instruction("NOP", code[5].label)
    in_loop, body = main_loops(flow_graph(code))
    assert in_loop and _ops(body) == ["LDG.E", "LDG.E.64", "LDGSTS.E.128"]
    code[7] = Instruction("NOP", code[7].label)
    assert main_loops(flow_graph(code))[0] is False


def test_a_loop_left_by_a_call() -> None:
    code = _sass(
        "LDG.E R0, [R2]",
        "LDG.E.128 R0, [R2]",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",
        "@P1 CALL.REL.NOINC 0x50",
        "BRA 0x10",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",
        "@P0 EXIT",
        "BRA 0x0",
    )
    in_loop, body = main_loops(flow_graph(code))
    assert in_loop and _ops(body) == ["LDG.E.128"]


def test_uniform_branches_may_fall_through() -> None:
    code = _sass("UTCHMMA gdesc[UR4]", "BRA.U UP0, 0x0", "EXIT", "BRA 0x30")
    assert [i.falls for i in code] == [True, True, False, False]
    assert main_loops(flow_graph(code))[0]


def test_loads_of_another_warp_are_the_main_loops() -> None:
    code = _sass(
        "@P0 BRA 0x40",
        "UTMALDG.2D [UR8], [UR6]",
        "@P1 BRA 0x10",
        "EXIT",
        "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24",
        "@P1 BRA 0x40",
        "EXIT",
    )
    in_loop, body = main_loops(flow_graph(code))
    assert in_loop and _ops(body) == ["UTMALDG.2D"]


def test_without_loops_the_kernel_is_the_main_loop() -> None:
    in_loop, body = main_loops(flow_graph(_sass("LDG.E R0, [R2]", "EXIT")))
    assert not in_loop and _ops(body) == ["LDG.E"]


AMDGCN = """
other:
.LBB0_0:
	global_load_ushort v0, v[0:1], off
	s_cbranch_scc1 .LBB0_0
.Lfunc_end0:
kernel:                                 ; @kernel
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	global_load_dword v0, v[0:1], off
	s_branch .LBB1_2
.LBB1_1:                                ;   in Loop: Header=BB1_2 Depth=1
	v_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
	s_cbranch_scc0 .LBB1_4
.LBB1_2:                                ; =>This Inner Loop Header: Depth=1
.LBB1_3:
	s_cbranch_execz .LBB1_1
	buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen
	s_branch .LBB1_1
.LBB1_4:
	s_endpgm
.Lfunc_end1:
"""


def test_amdgcn() -> None:
    code = parse_amdgcn(AMDGCN, "kernel")
    assert code[0].op == "s_load_dwordx2" and code[-1].op == "s_endpgm"
    in_loop, body = main_loops(flow_graph(code))
    assert in_loop and _ops(body) == ["buffer_load_dwordx4"]
