// Package seal keeps values secret at rest: it seals them before they are stored and opens what was sealed.
//
// In: keys, as the lines of a key file; plain values with the context that they belong to. Out: sealed values with the id
// of their key. The cipher is AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits in front of the sealed value,
// so one key is good for 2^32 values.
//
// Invariants: the first key seals, every key opens, so that keys can be replaced one after the other; a sealed value opens
// only in the context that it was sealed in; no key can be printed, whatever the format. The package must not read files
// and must not know what the values mean.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
)

// Causes that a caller tells apart with errors.Is.
var (
	// ErrUnknownKey says that a value is sealed with a key that the Keyring does not have.
	ErrUnknownKey = errors.New("sealed with a key that is not known here")
	// ErrDamaged says that a value does not open with the key it names: it was changed, belongs to another context, or the
	// key of that id is another one.
	ErrDamaged = errors.New("does not open: it was changed, was moved, or was sealed with another key of the same id")
)

// keySize is that of AES-256, in bytes.
const keySize = 32

// Key is one key. Its material is never printed.
type Key struct {
	id       string
	material [keySize]byte
}

// NewKey makes a random key with a random id.
func NewKey() Key {
	var k Key
	var id [6]byte
	rand.Read(id[:]) // never fails: crypto/rand ends the process rather than return an error
	rand.Read(k.material[:])
	k.id = hex.EncodeToString(id[:])
	return k
}

// ID names the key in what is sealed with it. It is no secret.
func (k Key) ID() string { return k.id }

// Format implements fmt.Formatter, so that no verb prints the key.
func (k Key) Format(f fmt.State, _ rune) {
	fmt.Fprint(f, "key "+k.id)
}

// Line is the key as a line of a key file: the format's version, the id and the material in base64. It is the one way to
// get the material out.
func (k Key) Line() string {
	return version + " " + k.id + " " + base64.StdEncoding.EncodeToString(k.material[:]) + "\n"
}

// version begins every line of a key file.
const version = "v1"

// ParseKeys reads a key file: one key a line, as Line writes them; empty lines and lines that begin with # say nothing.
// Errors are Invalid, name the line and show nothing of a key.
func ParseKeys(text string) ([]Key, error) {
	var keys []Key
	number := 0
	for line := range strings.Lines(text) {
		number++
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		key, err := parseLine(words)
		if err != nil {
			return nil, errs.WrapAs(errs.Invalid, err, "line %d", number)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errs.New(errs.Invalid, "holds no key: want a line %q", version+" ID BASE64")
	}
	if _, err := NewKeyring(keys...); err != nil {
		return nil, err
	}
	return keys, nil
}

func parseLine(words []string) (Key, error) {
	if words[0] != version {
		return Key{}, fmt.Errorf("must begin with %s, the only version of this format that is known here", version)
	}
	if len(words) != 3 {
		return Key{}, fmt.Errorf("must be %s, the key's id and the key in base64", version)
	}
	if rule := names.DNSLabel(words[1]); rule != "" {
		return Key{}, fmt.Errorf("the key's id %s", rule)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(words[2])
	if err != nil || len(raw) != keySize {
		return Key{}, fmt.Errorf("key %s must be %d bytes in base64", words[1], keySize)
	}
	k := Key{id: words[1]}
	copy(k.material[:], raw)
	if k.material == ([keySize]byte{}) {
		return Key{}, fmt.Errorf("key %s must not be all zeros", k.id)
	}
	return k, nil
}

// Keyring seals with its first key and opens with all. It does not change and may be shared.
type Keyring struct {
	ids   []string
	aeads []cipher.AEAD
}

// NewKeyring makes a Keyring. Errors: Invalid for no key, and for an id or a key that is there twice.
func NewKeyring(keys ...Key) (*Keyring, error) {
	if len(keys) == 0 {
		return nil, errs.New(errs.Invalid, "a keyring needs a key")
	}
	r := &Keyring{}
	for i, k := range keys {
		for _, other := range keys[:i] {
			if other.id == k.id {
				return nil, errs.New(errs.Invalid, "two keys have the id %s", k.id)
			}
			if other.material == k.material {
				return nil, errs.New(errs.Invalid, "the keys %s and %s are the same", other.id, k.id)
			}
		}
		block, err := aes.NewCipher(k.material[:])
		if err != nil {
			return nil, errs.WrapAs(errs.Internal, err, "key %s", k.id)
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, errs.WrapAs(errs.Internal, err, "key %s", k.id)
		}
		r.ids, r.aeads = append(r.ids, k.id), append(r.aeads, aead)
	}
	return r, nil
}

// Format implements fmt.Formatter: it prints the ids.
func (r *Keyring) Format(f fmt.State, _ rune) {
	fmt.Fprint(f, "keys "+strings.Join(r.IDs(), ", "))
}

// IDs are the keys' ids; the first is that of the key that seals.
func (r *Keyring) IDs() []string { return slices.Clone(r.ids) }

// Seal seals a value in a context, with the first key.
func (r *Keyring) Seal(plain []byte, context string) (keyID string, sealed []byte) {
	return r.ids[0], r.aeads[0].Seal(nil, nil, plain, []byte(context))
}

// Open opens a value in its context. Errors: ErrUnknownKey and ErrDamaged; neither shows anything of the value.
func (r *Keyring) Open(keyID string, sealed []byte, context string) ([]byte, error) {
	i := slices.Index(r.ids, keyID)
	if i < 0 {
		return nil, fmt.Errorf("key %q: %w (known: %s)", keyID, ErrUnknownKey, strings.Join(r.ids, ", "))
	}
	plain, err := r.aeads[i].Open(nil, nil, sealed, []byte(context))
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", keyID, ErrDamaged)
	}
	return plain, nil
}
