//! The ciphers, each from a key: what they make of a value, and of that the value again.
//!
//! Nonces come from the kernel, not from a generator in this process: a snapshot of a machine that is started twice
//! would repeat the latter's.

use aes::cipher::block_padding::{NoPadding, Pkcs7};
use aes::cipher::{BlockDecryptMut as _, BlockEncryptMut as _, KeyIvInit as _};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{AeadInPlace as _, KeyInit as _};
use aes_gcm::{AesGcm, Nonce, Tag};
use crypto_secretbox::XSalsa20Poly1305;
use hkdf::Hkdf;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use sha2::Sha256;

use crate::error::Error;

const BLOCK: usize = 16;
const GCM_NONCE: usize = 12;
const TAG: usize = 16;
const BOX_NONCE: usize = 24;
/// The random bytes before a value from which its own key is derived.
const INFO: usize = 32;
/// A seed and a derived key, in bytes.
pub const SEED: usize = 32;

const SHORT: &str = "the stored data was shorter than the required size";
/// What Go says of a tag that does not match.
const NOT_AUTHENTIC: &str = "cipher: message authentication failed";

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| Error::new(error.to_string()))?;
    Ok(bytes)
}

/// A cipher with its key.
pub enum Cipher {
    Gcm(Box<Gcm>),
    Cbc(Cbc),
    /// XSalsa20 and Poly1305, as NaCl has them.
    Secretbox(Box<XSalsa20Poly1305>),
}

impl Cipher {
    /// AES in Galois/Counter mode with a key of 16, 24 or 32 bytes.
    pub fn gcm(key: &[u8]) -> Option<Self> {
        Gcm::new(key).map(Box::new).map(Cipher::Gcm)
    }

    /// AES in cipher-block chaining mode with a key of 16, 24 or 32 bytes.
    pub fn cbc(key: &[u8]) -> Option<Self> {
        matches!(key.len(), 16 | 24 | 32).then(|| Cipher::Cbc(Cbc(key.into())))
    }

    /// With a key of 32 bytes.
    pub fn secretbox(key: &[u8]) -> Option<Self> {
        XSalsa20Poly1305::new_from_slice(key).ok().map(Box::new).map(Cipher::Secretbox)
    }

    /// Appends to `out` what `plain` becomes when it is stored under `place`.
    pub fn seal(&self, plain: &[u8], place: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Cipher::Gcm(gcm) => gcm.seal(random()?, plain, place, out),
            Cipher::Cbc(cbc) => {
                cbc.seal(random()?, plain, out);
                Ok(())
            }
            Cipher::Secretbox(sealing) => {
                let nonce: [u8; BOX_NONCE] = random()?;
                out.extend_from_slice(&nonce);
                let at = out.len();
                // The tag comes first here.
                out.resize(at + TAG, 0);
                out.extend_from_slice(plain);
                let tag = sealing
                    .encrypt_in_place_detached(&nonce.into(), &[], &mut out[at + TAG..])
                    .map_err(|_| Error::new("the value is too long to be encrypted"))?;
                out[at..at + TAG].copy_from_slice(&tag);
                Ok(())
            }
        }
    }

    /// The value of what was stored under `place`.
    pub fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, Error> {
        match self {
            Cipher::Gcm(gcm) => gcm.open(sealed, place),
            Cipher::Cbc(cbc) => cbc.open(sealed),
            Cipher::Secretbox(sealing) => {
                if sealed.len() < BOX_NONCE + TAG {
                    return Err(Error::new(SHORT));
                }
                let (nonce, rest) = sealed.split_at(BOX_NONCE);
                let (tag, rest) = rest.split_at(TAG);
                let mut plain = rest.to_vec();
                sealing
                    .decrypt_in_place_detached(nonce.into(), &[], &mut plain, tag.into())
                    .map_err(|_| Error::new("output array was not large enough for encryption"))?;
                Ok(plain)
            }
        }
    }
}

/// AES-GCM by the length of its key. The nonce stands before what it made.
pub enum Gcm {
    Aes128(AesGcm<Aes128, U12>),
    Aes192(AesGcm<Aes192, U12>),
    Aes256(AesGcm<Aes256, U12>),
}

impl Gcm {
    pub fn new(key: &[u8]) -> Option<Self> {
        Some(match key.len() {
            16 => Gcm::Aes128(AesGcm::new_from_slice(key).ok()?),
            24 => Gcm::Aes192(AesGcm::new_from_slice(key).ok()?),
            32 => Gcm::Aes256(AesGcm::new_from_slice(key).ok()?),
            _ => return None,
        })
    }

    fn seal(
        &self,
        nonce: [u8; GCM_NONCE],
        plain: &[u8],
        place: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        out.extend_from_slice(&nonce);
        let at = out.len();
        out.extend_from_slice(plain);
        let nonce = Nonce::from(nonce);
        let text = &mut out[at..];
        let tag = match self {
            Gcm::Aes128(gcm) => gcm.encrypt_in_place_detached(&nonce, place, text),
            Gcm::Aes192(gcm) => gcm.encrypt_in_place_detached(&nonce, place, text),
            Gcm::Aes256(gcm) => gcm.encrypt_in_place_detached(&nonce, place, text),
        };
        out.extend_from_slice(&tag.map_err(|_| Error::new("the value is too long to be encrypted"))?);
        Ok(())
    }

    pub fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, Error> {
        if sealed.len() < GCM_NONCE {
            return Err(Error::new(SHORT));
        }
        let (nonce, rest) = sealed.split_at(GCM_NONCE);
        let Some(end) = rest.len().checked_sub(TAG) else { return Err(Error::new(NOT_AUTHENTIC)) };
        let (text, tag) = rest.split_at(end);
        let (nonce, tag) = (Nonce::from_slice(nonce), Tag::from_slice(tag));
        let mut plain = text.to_vec();
        let opened = match self {
            Gcm::Aes128(gcm) => gcm.decrypt_in_place_detached(nonce, place, &mut plain, tag),
            Gcm::Aes192(gcm) => gcm.decrypt_in_place_detached(nonce, place, &mut plain, tag),
            Gcm::Aes256(gcm) => gcm.decrypt_in_place_detached(nonce, place, &mut plain, tag),
        };
        opened.map_err(|_| Error::new(NOT_AUTHENTIC))?;
        Ok(plain)
    }
}

/// AES-CBC with the padding of PKCS #7. The first block is where the chain begins. It does not know where it is stored.
pub struct Cbc(Box<[u8]>);

impl Cbc {
    fn seal(&self, iv: [u8; BLOCK], plain: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&iv);
        let at = out.len();
        out.extend_from_slice(plain);
        out.resize(at + (plain.len() / BLOCK + 1) * BLOCK, 0);
        let (text, length) = (&mut out[at..], plain.len());
        macro_rules! encrypt {
            ($aes:ty) => {
                cbc::Encryptor::<$aes>::new_from_slices(&self.0, &iv)
                    .map(|chain| chain.encrypt_padded_mut::<Pkcs7>(text, length).map(|_| ()))
            };
        }
        let done = match self.0.len() {
            16 => encrypt!(Aes128),
            24 => encrypt!(Aes192),
            _ => encrypt!(Aes256),
        };
        debug_assert!(matches!(done, Ok(Ok(()))), "the key is of one of the lengths, and there is room");
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        if sealed.len() < BLOCK {
            return Err(Error::new(SHORT));
        }
        let (iv, text) = sealed.split_at(BLOCK);
        if text.len() % BLOCK != 0 {
            return Err(Error::new("the stored data is not a multiple of the block size"));
        }
        let mut plain = text.to_vec();
        macro_rules! decrypt {
            ($aes:ty) => {
                cbc::Decryptor::<$aes>::new_from_slices(&self.0, iv)
                    .is_ok_and(|chain| chain.decrypt_padded_mut::<NoPadding>(&mut plain).is_ok())
            };
        }
        let done = match self.0.len() {
            16 => decrypt!(Aes128),
            24 => decrypt!(Aes192),
            _ => decrypt!(Aes256),
        };
        let empty = || Error::new("invalid PKCS7 data (empty or not padded)");
        let padding = *plain.last().filter(|_| done).ok_or_else(empty)?;
        let end = plain.len().checked_sub(padding.into()).filter(|_| padding != 0).ok_or_else(empty)?;
        if plain[end..].iter().any(|byte| *byte != padding) {
            return Err(Error::new("invalid padding on input"));
        }
        plain.truncate(end);
        Ok(plain)
    }
}

/// A seed from which each value gets an AES-256-GCM key of its own (KEP-3299), so that no number of values wears it out.
/// What the key was derived with stands before what the cipher made.
pub struct Seed(Hkdf<Sha256>);

impl Seed {
    /// From at least [`SEED`] strong random bytes.
    pub fn new(seed: &[u8]) -> Result<Self, Error> {
        let short = || Error::new(format!("invalid seed length {} used for key generation", seed.len()));
        if seed.len() < SEED {
            return Err(short());
        }
        Hkdf::from_prk(seed).map(Seed).map_err(|_| short())
    }

    fn derive(&self, info: &[u8]) -> Result<Gcm, Error> {
        let mut key = [0; SEED];
        let fail = || Error::new("failed to derive a key from the seed");
        self.0.expand(info, &mut key).map_err(|_| fail())?;
        Gcm::new(&key).ok_or_else(fail)
    }

    pub fn seal(&self, plain: &[u8], place: &[u8]) -> Result<Vec<u8>, Error> {
        let info: [u8; INFO] = random()?;
        let mut out = Vec::with_capacity(INFO + GCM_NONCE + plain.len() + TAG);
        out.extend_from_slice(&info);
        self.derive(&info)?.seal(random()?, plain, place, &mut out)?;
        Ok(out)
    }

    pub fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, Error> {
        if sealed.len() < INFO {
            return Err(Error::new(SHORT));
        }
        let (info, rest) = sealed.split_at(INFO);
        self.derive(info)?.open(rest, place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(text).expect("hex")
    }

    /// The published examples: test case 4 of the GCM specification, F.2.1 and F.2.5 of NIST SP 800-38A, and NaCl's
    /// own of its secret boxes.
    #[test]
    fn published_examples_come_out() {
        let plain = bytes(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        );
        let place = bytes("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let sealed = bytes(
            "cafebabefacedbaddecaf88842831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47",
        );
        let gcm = Gcm::new(&bytes("feffe9928665731c6d6a8f9467308308")).expect("a key");
        assert_eq!(gcm.open(&sealed, &place).expect("it opens"), plain);
        let mut out = Vec::new();
        gcm.seal(sealed[..12].try_into().expect("a nonce"), &plain, &place, &mut out).expect("it seals");
        assert_eq!(out, sealed);

        let iv = bytes("000102030405060708090a0b0c0d0e0f");
        let plain = bytes("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51");
        for (key, first) in [
            (
                "2b7e151628aed2a6abf7158809cf4f3c",
                "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2",
            ),
            (
                "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
                "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d",
            ),
        ] {
            let cbc = Cbc(bytes(key).into());
            let mut out = Vec::new();
            cbc.seal(iv.as_slice().try_into().expect("a block"), &plain, &mut out);
            assert_eq!(out[..48], [iv.clone(), bytes(first)].concat());
            assert_eq!(out.len(), 64, "a block of padding");
            assert_eq!(cbc.open(&out).expect("it opens"), plain);
        }

        let key = bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let plain = bytes(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        );
        let sealed = bytes(
            "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5",
        );
        let cipher = Cipher::secretbox(&key).expect("a key");
        assert_eq!(cipher.open(&sealed, b"").expect("it opens"), plain);
        assert_eq!(
            cipher.open(&sealed[..60], b"").expect_err("cut").to_string(),
            "output array was not large enough for encryption"
        );
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_and_nowhere_else() {
        for length in [16, 24, 32] {
            let key = vec![7; length];
            for plain in [&b""[..], b"a", &[9; 16], &[9; 1000]] {
                for cipher in [Cipher::gcm(&key), Cipher::cbc(&key), Cipher::secretbox(&[7; 32])] {
                    let cipher = cipher.expect("a key");
                    let (mut one, mut two) = (b"before".to_vec(), Vec::new());
                    cipher.seal(plain, b"/here", &mut one).expect("sealed");
                    cipher.seal(plain, b"/here", &mut two).expect("sealed");
                    assert_ne!(one[6..], two[..], "never the same twice");
                    assert_eq!(cipher.open(&one[6..], b"/here").expect("opened"), plain);
                    let moved = cipher.open(&two, b"/there");
                    assert_eq!(moved.is_err(), matches!(cipher, Cipher::Gcm(_)), "only GCM knows its place");
                }
            }
        }
        assert!(Cipher::gcm(&[1; 15]).is_none() && Cipher::cbc(&[1; 20]).is_none());
        assert!(Cipher::secretbox(&[1; 31]).is_none());
    }

    #[test]
    fn a_seed_derives_a_key_for_each_value() {
        // RFC 5869, test case 1: the first 32 bytes of what is expanded.
        let prk = bytes("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
        let mut derived = [0; 32];
        Seed::new(&prk)
            .expect("a seed")
            .0
            .expand(&bytes("f0f1f2f3f4f5f6f7f8f9"), &mut derived)
            .expect("expanded");
        assert_eq!(
            derived.to_vec(),
            bytes("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")
        );
        let seed = Seed::new(&[3; 32]).expect("a seed");
        let sealed = seed.seal(b"text", b"/here").expect("sealed");
        assert_eq!(sealed.len(), 32 + 12 + 4 + 16);
        assert_eq!(seed.open(&sealed, b"/here").expect("opened"), b"text");
        assert!(seed.open(&sealed, b"/there").is_err());
        let Err(short) = Seed::new(&[3; 31]) else { panic!("too short") };
        assert_eq!(short.to_string(), "invalid seed length 31 used for key generation");
    }

    #[test]
    fn what_was_damaged_is_refused_and_never_panics() {
        for cipher in [Cipher::gcm(&[1; 32]), Cipher::cbc(&[1; 32]), Cipher::secretbox(&[1; 32])] {
            let cipher = cipher.expect("a key");
            let mut sealed = Vec::new();
            cipher.seal(b"some text", b"/here", &mut sealed).expect("sealed");
            for end in 0..sealed.len() {
                assert!(cipher.open(&sealed[..end], b"/here").is_err(), "cut at {end}");
            }
        }
        let cbc = Cbc(vec![1; 16].into());
        let told = |sealed: &[u8]| cbc.open(sealed).expect_err("refused").to_string();
        assert_eq!(told(&[0; 15]), SHORT);
        assert_eq!(told(&[0; 17]), "the stored data is not a multiple of the block size");
        assert_eq!(told(&[0; 16]), "invalid PKCS7 data (empty or not padded)");
    }
}
