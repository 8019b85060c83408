package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/seal"
)

// SecretsKeyFile is the file, in the directory that Init makes, with the keys that Secrets are sealed with before they
// reach etcd: one line `v1 ID BASE64` a key (seal.ParseKeys), the first of which seals. Only ingress reads it, when it
// starts. To replace a key, add the new one as the last line for every replica; then move it to the top for every
// replica, and what older keys sealed is sealed anew (store.Reseal); then remove the older lines.
const SecretsKeyFile = "secrets.key"

// maxKeysFile bounds a key file, in bytes: some hundreds of keys.
const maxKeysFile = 64 << 10

// LoadKeys reads a key file. Errors: NotFound without one; Invalid for one that is not well-formed or that everybody may
// read. No error shows a key.
func LoadKeys(path string) (*seal.Keyring, error) {
	keys, err := loadKeys(path)
	if err != nil {
		return nil, errs.Wrap(err, "keys of Secrets: %s", path)
	}
	ring, err := seal.NewKeyring(keys...)
	return ring, errs.Wrap(err, "keys of Secrets: %s", path)
}

func loadKeys(path string) ([]seal.Key, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errs.New(errs.NotFound, "is missing: `podwire pki init` makes it")
	case err != nil:
		return nil, errs.WrapAs(errs.Internal, err, "stat")
	case !info.Mode().IsRegular():
		return nil, errs.New(errs.Invalid, "must be a file")
	case info.Mode().Perm()&0o007 != 0:
		return nil, errs.New(errs.Invalid, "must not be open to everybody, as its mode %04o says: chmod 0600 it, and consider its keys known", info.Mode().Perm())
	case info.Size() > maxKeysFile:
		return nil, errs.New(errs.Invalid, "must be no more than %d bytes", maxKeysFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "read")
	}
	return seal.ParseKeys(string(text))
}

// secretsKey makes the key of Secrets, or checks the ones that are there.
func (i *initialiser) secretsKey() error {
	path := filepath.Join(i.dir, SecretsKeyFile)
	have, err := exists(path)
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "keys of Secrets")
	}
	if have {
		_, err := LoadKeys(path)
		return err
	}
	return i.write(SecretsKeyFile, []byte(seal.NewKey().Line()), privateMode)
}
