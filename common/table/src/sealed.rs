//! Metadata files whose names carry a checksum of what is in them.
//!
//! Neither Avro nor JSON notices a changed byte, so manifests, manifest lists and `metadata.json` that everlog writes say
//! in their names what they hold. Whoever refers to such a file, the catalog to `metadata.json`, that to manifest lists,
//! those to manifests, refers to these very bytes; data files have checksums of their own. To Iceberg a name means nothing.
//!
//! | file | name |
//! |---|---|
//! | manifest, manifest list | `…-x` + folder (6 hexadecimal digits) + contents (16) + `.avro` |
//! | `metadata.json` | `<number>-<UUID>.metadata.json`; the UUID is of version 8: chance (36 bits), folder (12), version, folder (the other 12), variant, contents (the highest 62 bits) |
//!
//! *contents* is the XXH3-64 of the file's bytes; *folder* are the highest 24 bits of the XXH3-64 of bucket and path of the
//! folder that it was written into. Where the folder is another one, the file was copied there with its name kept, perhaps
//! with the paths in it rewritten, and the name tells nothing.
//!
//! Names of other writers tell nothing either, and their files are read as they are.

use uuid::Uuid;

use crate::footer::checksum;

const AVRO: &str = ".avro";
const JSON: &str = ".metadata.json";
/// Between what a name says and its checksums.
const MARK: &str = "-x";
const FOLDER_DIGITS: usize = 6;
const CONTENTS_DIGITS: usize = 16;

/// The full name of an Avro file: `stem` is its name without extension.
pub(crate) fn avro_name(stem: &str, bytes: &[u8]) -> String {
    let (folder, contents) = (folder_of(stem), checksum(bytes));
    format!("{stem}{MARK}{folder:06x}{contents:016x}{AVRO}")
}

/// The UUID for the name of a metadata file that goes into `folder`.
pub(crate) fn metadata_uuid(folder: &str, bytes: &[u8], chance: Uuid) -> Uuid {
    let (chance, folder) = (chance.as_u128() >> 92, u128::from(folder_sum(folder)));
    let contents = u128::from(checksum(bytes) >> 2);
    Uuid::from_u128(
        chance << 92
            | (folder >> 12) << 80
            | 8 << 76
            | (folder & 0xfff) << 64
            | 0b10 << 62
            | contents,
    )
}

/// Whether a file holds what its name says; true where the name says nothing.
pub(crate) fn is_intact(uri: &str, bytes: &[u8]) -> bool {
    told_by_avro(uri)
        .map(|told| told == checksum(bytes))
        .or_else(|| told_by_metadata(uri).map(|told| told == checksum(bytes) >> 2))
        .unwrap_or(true)
}

/// What is wrong with a file that is not intact.
pub(crate) const DAMAGED: &str = "its contents do not match the checksum in its name: it was damaged or changed after it was written";

fn told_by_avro(uri: &str) -> Option<u64> {
    let (stem, digits) = uri.strip_suffix(AVRO)?.rsplit_once(MARK)?;
    let (folder, contents) = digits.split_at_checked(FOLDER_DIGITS)?;
    if contents.len() != CONTENTS_DIGITS {
        return None;
    }
    let contents = hexadecimal(contents)?;
    (hexadecimal(folder)? == folder_of(stem)).then_some(contents)
}

fn told_by_metadata(uri: &str) -> Option<u64> {
    let (folder, name) = uri.rsplit_once('/')?;
    let (_, id) = name.strip_suffix(JSON)?.split_once('-')?;
    let id = Uuid::try_parse(id).ok()?;
    let ours = id.get_version_num() == 8 && id.get_variant() == uuid::Variant::RFC4122;
    let bits = id.as_u128();
    let sum = ((bits >> 80) & 0xfff) << 12 | (bits >> 64) & 0xfff;
    if !ours || sum != u128::from(folder_sum(folder)) {
        return None;
    }
    u64::try_from(bits & ((1 << 62) - 1)).ok()
}

fn hexadecimal(digits: &str) -> Option<u64> {
    let lower = digits
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    lower
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
}

fn folder_of(stem: &str) -> u64 {
    folder_sum(stem.rsplit_once('/').map_or("", |(folder, _)| folder))
}

/// Of bucket and path: engines write one scheme in several ways.
fn folder_sum(folder: &str) -> u64 {
    let path = folder.split_once("://").map_or_else(
        || folder.strip_prefix("file:").unwrap_or(folder),
        |(_, p)| p,
    );
    checksum(path.trim_matches('/').as_bytes()) >> 40
}

/// A name without what it says of the contents, which differ from run to run (Avro files end their blocks with a random
/// marker): for traces that are compared.
pub fn without_contents(uri: &str) -> String {
    if told_by_avro(uri).is_some() {
        let stem = uri.rsplit_once(MARK).map_or(uri, |(stem, _)| stem);
        return format!("{stem}{AVRO}");
    }
    let id = |uri: &str| {
        Some(
            uri.rsplit_once('/')?
                .1
                .strip_suffix(JSON)?
                .split_once('-')?
                .1
                .to_owned(),
        )
    };
    match (told_by_metadata(uri), id(uri)) {
        (Some(_), Some(id)) => uri.replace(&id, id.get(..19).unwrap_or(&id)),
        _ => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER: &str = "s3://bucket/lake/t/metadata";

    #[test]
    fn a_name_tells_of_every_changed_byte_and_of_a_cut() {
        let bytes: Vec<u8> = (0..=255).collect();
        let avro = avro_name(&format!("{FOLDER}/snap-7-x-1"), &bytes);
        let id = metadata_uuid(FOLDER, &bytes, Uuid::from_u128(u128::MAX));
        let json = format!("{FOLDER}/00003-{id}.metadata.json");
        assert_eq!(
            (id.get_version_num(), id.get_variant()),
            (8, uuid::Variant::RFC4122)
        );
        for name in [&avro, &json] {
            assert!(is_intact(name, &bytes), "{name}");
            assert!(!is_intact(name, &bytes[1..]), "{name}");
            assert_ne!(&without_contents(name), name);
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    assert!(!is_intact(name, &changed), "{name} {at}");
                }
            }
        }
    }

    #[test]
    fn metadata_files_of_the_same_contents_still_have_names_of_their_own() {
        let of = |chance: u128| metadata_uuid(FOLDER, b"x", Uuid::from_u128(chance << 100));
        assert_ne!(of(1), of(2));
        // as the catalogs of other engines read it
        assert_eq!(of(1).hyphenated().to_string().len(), 36);
    }

    #[test]
    fn names_of_others_and_of_copies_elsewhere_tell_nothing() {
        let avro = avro_name(&format!("{FOLDER}/m"), b"x");
        let id = metadata_uuid(FOLDER, b"x", Uuid::from_u128(1));
        let moved = |name: &str| name.replace("lake", "copy");
        for name in [
            moved(&avro),
            moved(&format!("{FOLDER}/00003-{id}.metadata.json")),
            format!("{FOLDER}/snap-1-1-0b7f3a3e-5d0c-4c5e-9b6e-0123456789ab.avro"),
            format!("{FOLDER}/0b7f3a3e-5d0c-4c5e-9b6e-0123456789ab-m0.avro"),
            format!("{FOLDER}/00003-0b7f3a3e-5d0c-4c5e-9b6e-0123456789ab.metadata.json"),
            format!("{FOLDER}/v3.metadata.json"),
            "x".to_owned(),
            String::new(),
        ] {
            assert!(is_intact(&name, b"y"), "{name}");
        }
        // another way to write the same folder
        for scheme in ["s3a://", "s3n://"] {
            let same = avro.replace("s3://", scheme);
            assert!(is_intact(&same, b"x") && !is_intact(&same, b"y"), "{same}");
        }
    }
}
