"""What is read from machine code, on pieces whose answer is known."""

from bench.models.instructions import mix

# A tile loop around a product loop, with a fallback that the tile jumps over.
SASS = """
        /*0000*/                   LDG.E.128 R4, [R2.64] ;
.L_x_0:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R9], [R2.64] ;
        /*0020*/                   FADD R1, R1, R2 ;
.L_x_1:
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/              @!P6 BRA `(.L_x_1) ;
        /*0050*/                   MUFU.EX2 R3, R3 ;
        /*0060*/                   SHFL.BFLY PT, R1, R1, 0x1, 0x1f ;
        /*0070*/               @P2 BRA `(.L_x_2) ;
        /*0080*/                   MUFU.EX2 R3, R3 ;
        /*0090*/                   MUFU.EX2 R3, R3 ;
.L_x_2:
        /*00a0*/                   STG.E.U16 [R2.64], R3 ;
        /*00b0*/               @P0 BRA `(.L_x_0) ;
        /*00c0*/                   STG.E.128 [R2.64], R4 ;
        /*00d0*/                   EXIT ;
"""
AMD = """
.LBB0_1:
	global_load_dwordx4 v[0:3], v4, s[0:1]
	v_mfma_f32_32x32x8_bf16 v[0:15], v[0:1], v[2:3], v[0:15]
	s_cbranch_scc1 .LBB0_1
	v_exp_f32_e32 v1, v1
	global_store_short v4, v1, s[0:1]
	s_endpgm
"""


def test_counts_of_nvidia_code():
    found = mix(SASS)
    assert found["matrix"] == {"HGMMA.64x128x16": 1}
    assert (found["loads_16"], found["loads_narrow"], found["copies_asynchronous"]) == (2, 0, 1)
    assert (found["stores_16"], found["stores_narrow"]) == (1, 1)
    assert (found["exponentials"], found["atomics"]) == (3, 0)
    assert "exponentials_each" not in found


def test_a_tile_is_followed_around_its_loop_without_the_fallback():
    found = mix(SASS, lanes=4, elements=8)
    assert found["exponentials_each"] == 0.5
    assert found["shuffles_each"] == 0.5
    # EX2, SHFL, BRA, STG, BRA, LDGSTS, FADD: neither the product's loop nor what precedes all.
    assert found["instructions_each"] == 3.5


def test_a_kernel_of_one_tile_is_followed_from_start_to_end():
    straight = SASS.replace("@P0 BRA `(.L_x_0)", "NOP")
    assert mix(straight, lanes=1, elements=1)["instructions_each"] == 10


def test_counts_of_amd_code():
    found = mix(AMD, lanes=1, elements=1)
    assert found["matrix"] == {"v_mfma_f32_32x32x8_bf16": 1}
    assert (found["loads_16"], found["stores_narrow"], found["exponentials"]) == (1, 1, 1)
    assert found["exponentials_each"] == 1


def test_atomics_are_seen():
    assert mix("        /*0010*/                   RED.E.ADD.F32 [R2.64], R4 ;")["atomics"] == 1
    assert mix("        /*0010*/                   REDUX.MAX UR4, R4 ;")["atomics"] == 0


def test_a_wait_below_the_code_is_no_loop():
    """The tensor copies are waited for below the last exit, and come back into the loop."""
    waiting = (
        SASS.replace("@P0 BRA `(.L_x_0)", "@P0 BRA `(.L_wait)")
        + """
.L_wait:
        /*00e0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1] ;
        /*00f0*/               @P0 BRA `(.L_wait) ;
        /*0100*/                   BRA `(.L_x_1) ;
"""
    )
    straight = SASS.replace("@P0 BRA `(.L_x_0)", "NOP")
    # A jump more, and STG and EXIT are its own way out as in the straight code.
    assert mix(waiting, 1, 1)["instructions_each"] == mix(straight, 1, 1)["instructions_each"]


def test_code_without_a_product_is_counted_as_a_whole():
    elementwise = SASS.replace("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24", "NOP")
    found = mix(elementwise, lanes=2, elements=4)
    assert found["exponentials_each"] == 1.5  # three in the code
    assert found["instructions_each"] == 7.0  # fourteen
