// SPDX-License-Identifier: BSD-3-Clause
//! Option data and option reply payloads, as layouts only: what follows from them is decided in
//! `newstyle`.

use super::{Info, Listed};
use crate::proto::Violation;
use crate::proto::codec::{Reader, Writer, printable};
use crate::proto::consts::{InfoType, MAX_STRING, OptionReply, OptionType};
use crate::proto::context::ContextName;
use crate::proto::export::BlockSizes;
use crate::proto::name::ExportName;

/// Data of `NBD_OPT_GO` and `NBD_OPT_INFO`: the export's name and the facts we want. Asking for block sizes is the
/// promise to obey them.
pub fn go(export: &ExportName) -> Vec<u8> {
    // spec: Size constraints: SHOULD: who honours size constraints asks for NBD_INFO_BLOCK_SIZE
    // spec: Maximum interoperability: SHOULD: size constraints are asked for
    // spec: Option types: MUST NOT: no information is asked for twice
    // spec: Option types: MUST: the length of the name leaves room for what follows
    let wanted = [InfoType::BLOCK_SIZE, InfoType::NAME, InfoType::DESCRIPTION];
    wanted
        .iter()
        .fold(
            Writer::default()
                .string(export.as_bytes())
                .u16(wanted.len() as u16),
            |data, info| data.u16(info.0),
        )
        .finish()
}

/// Data of `NBD_OPT_SET_META_CONTEXT`: the one context that extents are to be made of.
pub fn set_meta_context(export: &ExportName, context: &ContextName) -> Vec<u8> {
    Writer::default()
        .string(export.as_bytes())
        .u32(1)
        .string(context.as_bytes())
        .finish()
}

/// Data of `NBD_OPT_LIST_META_CONTEXT`: no query, which means all contexts.
pub fn list_meta_context(export: &ExportName) -> Vec<u8> {
    Writer::default().string(export.as_bytes()).u32(0).finish()
}

/// Reads an `NBD_REP_META_CONTEXT` payload: the id, and the name.
pub fn meta_context(payload: &[u8]) -> Option<(u32, &[u8])> {
    let mut reader = Reader::new(payload);
    // spec: Option types: MUST: the id of a context is opaque, and of one connection
    let id = reader.u32()?;
    Some((id, reader.rest()))
}

/// Reads an `NBD_REP_SERVER` payload; `None` if it does not add up or breaks the rules for strings.
pub fn server(payload: &[u8]) -> Option<Listed> {
    let mut reader = Reader::new(payload);
    let length = reader.u32()?;
    let name = reader.bytes(length as usize)?;
    Some(Listed {
        name: export_name(name)?,
        description: string(reader.rest()).unwrap_or_default(),
    })
}

/// Reads an `NBD_REP_INFO` payload into `info`. Unknown facts are skipped; so are texts that break
/// the rules for strings, since nothing depends on them.
pub fn info(info: &mut Info, payload: &[u8]) -> Result<(), Violation> {
    let wrong_length = Violation::OptionLength {
        option: OptionType::GO,
        got: OptionReply::INFO,
        length: payload.len() as u32,
    };
    let mut reader = Reader::new(payload);
    // spec: Option types: MUST: information of an unknown type is ignored
    // spec: Option reply types: MUST NOT: information comes in any order
    // spec: Option reply types: MUST: information of an unknown type is ignored
    let kind = InfoType(reader.u16().ok_or(wrong_length.clone())?);
    match kind {
        InfoType::EXPORT => {
            let fact = export(reader).ok_or(wrong_length)?;
            if info.export.is_some_and(|earlier| earlier != fact) {
                return Err(Violation::OptionContent(
                    OptionType::GO,
                    "two NBD_INFO_EXPORT that contradict each other",
                ));
            }
            info.export = Some(fact);
        }
        InfoType::BLOCK_SIZE => {
            let (minimum, preferred, maximum) = block_size(reader).ok_or(wrong_length)?;
            info.block_sizes = BlockSizes::checked(minimum, preferred, maximum);
            if info.block_sizes.is_none() {
                log::info!(
                    "ignoring the server's block sizes {minimum}/{preferred}/{maximum}, which break the rules"
                );
            }
        }
        InfoType::NAME => info.canonical_name = export_name(reader.rest()),
        InfoType::DESCRIPTION => info.description = string(reader.rest()),
        other => log::debug!("ignoring {other} of {} bytes", payload.len()),
    }
    Ok(())
}

fn export(mut reader: Reader<'_>) -> Option<(u64, u16)> {
    let fact = (reader.u64()?, reader.u16()?);
    reader.rest().is_empty().then_some(fact)
}

fn block_size(mut reader: Reader<'_>) -> Option<(u32, u32, u32)> {
    let fact = (reader.u32()?, reader.u32()?, reader.u32()?);
    reader.rest().is_empty().then_some(fact)
}

/// A text by the specification's rules: UTF-8, no NUL, not too long.
fn string(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() <= MAX_STRING && !text.contains('\0'));
    if text.is_none() {
        ignored(bytes);
    }
    text.map(str::to_owned)
}

/// A name, for which the specification has the same rules; but names that are no UTF-8 are in use.
fn export_name(bytes: &[u8]) -> Option<ExportName> {
    let name = ExportName::new(bytes);
    if name.is_none() {
        ignored(bytes);
    }
    name
}

fn ignored(bytes: &[u8]) {
    log::info!(
        "ignoring a text that breaks the rules: {}",
        printable(bytes, 64)
    );
}
