//! The expressions that rules are made of, as the kernel's messages have them: each loads something into register 1, compares
//! or changes what is there, or does something with the packet.

use super::uapi::*;
use super::wire::Attributes;

pub(super) fn expression(name: &str, data: Attributes) -> Attributes {
    Attributes::new().text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data)
}

pub(super) fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().bytes(NFTA_DATA_VALUE, bytes)
}

pub(super) fn verdict(code: u32) -> Attributes {
    Attributes::new().nest(NFTA_DATA_VERDICT, Attributes::new().number(NFTA_VERDICT_CODE, code))
}

pub(super) fn verdict_to(code: i32, chain: &str) -> Attributes {
    let to =
        Attributes::new().number(NFTA_VERDICT_CODE, code.cast_unsigned()).text(NFTA_VERDICT_CHAIN, chain);
    Attributes::new().nest(NFTA_DATA_VERDICT, to)
}

pub(super) fn immediate(register: u32, data: Attributes) -> Attributes {
    let data = Attributes::new().number(NFTA_IMMEDIATE_DREG, register).nest(NFTA_IMMEDIATE_DATA, data);
    expression("immediate", data)
}

pub(super) fn meta(key: u32) -> Attributes {
    expression("meta", Attributes::new().number(NFTA_META_KEY, key).number(NFTA_META_DREG, NFT_REG_1))
}

pub(super) fn ct(key: u32) -> Attributes {
    expression("ct", Attributes::new().number(NFTA_CT_KEY, key).number(NFTA_CT_DREG, NFT_REG_1))
}

/// Of the connection as its client sees it, or as its server does.
pub(super) fn ct_of(key: u32, direction: u8) -> Attributes {
    let data = Attributes::new()
        .number(NFTA_CT_KEY, key)
        .number(NFTA_CT_DREG, NFT_REG_1)
        .bytes(NFTA_CT_DIRECTION, &[direction]);
    expression("ct", data)
}

pub(super) fn payload(base: u32, offset: u32, length: u32) -> Attributes {
    let data = Attributes::new()
        .number(NFTA_PAYLOAD_DREG, NFT_REG_1)
        .number(NFTA_PAYLOAD_BASE, base)
        .number(NFTA_PAYLOAD_OFFSET, offset)
        .number(NFTA_PAYLOAD_LEN, length);
    expression("payload", data)
}

pub(super) fn mask(bits: &[u8]) -> Attributes {
    let data = Attributes::new()
        .number(NFTA_BITWISE_SREG, NFT_REG_1)
        .number(NFTA_BITWISE_DREG, NFT_REG_1)
        .number(NFTA_BITWISE_LEN, bits.len() as u32)
        .nest(NFTA_BITWISE_MASK, value(bits))
        .nest(NFTA_BITWISE_XOR, value(&[0; 4][..bits.len()]));
    expression("bitwise", data)
}

pub(super) fn compare(operator: u32, with: &[u8]) -> Attributes {
    let data = Attributes::new()
        .number(NFTA_CMP_SREG, NFT_REG_1)
        .number(NFTA_CMP_OP, operator)
        .nest(NFTA_CMP_DATA, value(with));
    expression("cmp", data)
}

/// Loads what kind of address the destination is (`RTN_*`), as the routing tables see it.
pub(super) fn fib() -> Attributes {
    let data = Attributes::new()
        .number(NFTA_FIB_DREG, NFT_REG_1)
        .number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
        .number(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
    expression("fib", data)
}

/// Loads a number below `modulus`: by chance, or counting over and over.
pub(super) fn generate(kind: u32, modulus: u32) -> Attributes {
    let data = Attributes::new()
        .number(NFTA_NG_DREG, NFT_REG_1)
        .number(NFTA_NG_MODULUS, modulus)
        .number(NFTA_NG_TYPE, kind);
    expression("numgen", data)
}

pub(super) fn reset() -> Attributes {
    let data = Attributes::new().number(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST);
    expression("reject", data.bytes(NFTA_REJECT_ICMP_CODE, &[0]))
}

pub(super) fn big_endian() -> Attributes {
    let data = Attributes::new()
        .number(NFTA_BYTEORDER_SREG, NFT_REG_1)
        .number(NFTA_BYTEORDER_DREG, NFT_REG_1)
        .number(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON)
        .number(NFTA_BYTEORDER_LEN, 4)
        .number(NFTA_BYTEORDER_SIZE, 4);
    expression("byteorder", data)
}

/// Goes on with the rule only for what exceeds the rate.
pub(super) fn limit_over(bytes_per_second: u64) -> Attributes {
    let data = Attributes::new()
        .bytes(NFTA_LIMIT_RATE, &bytes_per_second.to_be_bytes())
        .bytes(NFTA_LIMIT_UNIT, &1u64.to_be_bytes())
        .number(NFTA_LIMIT_BURST, BURST)
        .number(NFTA_LIMIT_TYPE, NFT_LIMIT_PKT_BYTES)
        .number(NFTA_LIMIT_FLAGS, NFT_LIMIT_F_INV);
    expression("limit", data)
}

pub(super) fn set_priority() -> Attributes {
    let data = Attributes::new().number(NFTA_META_KEY, NFT_META_PRIORITY).number(NFTA_META_SREG, NFT_REG_1);
    expression("meta", data)
}

pub(super) fn dnat_to_registers() -> Attributes {
    let data = Attributes::new()
        .number(NFTA_NAT_TYPE, NFT_NAT_DNAT)
        .number(NFTA_NAT_FAMILY, nix::libc::AF_INET as u32)
        .number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1)
        .number(NFTA_NAT_REG_PROTO_MIN, NFT_REG_2);
    expression("nat", data)
}

/// Between interfaces of one machine packets travel unsegmented, up to 64 KiB each: a smaller burst would let none
/// of those pass at a low rate.
pub(super) const BURST: u32 = 64 << 10;
