package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"podwire.dev/internal/errs"
)

// Modes of what this package writes.
const (
	privateMode fs.FileMode = 0o600
	publicMode  fs.FileMode = 0o644
	dirMode     fs.FileMode = 0o755
)

// writeFile puts data at path whole or not at all, also across a power cut: a
// temporary file of the same directory, made 0600, is synced and renamed.
func writeFile(path string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return errs.WrapAs(errs.Internal, err, "pki: directory")
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "pki: write %s", path)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = errs.WrapAs(errs.Internal, err, "pki: write %s", path)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// exists says whether there is a file at path; an error is neither yes nor no.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// WriteIdentity writes an identity directory: the key first, the certificate last, so
// that a directory with a certificate is complete.
func WriteIdentity(dir string, caPEM, certPEM, keyPEM []byte) error {
	if err := writeFile(filepath.Join(dir, KeyFile), keyPEM, privateMode); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, CACertFile), caPEM, publicMode); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, CertFile), certPEM, publicMode)
}

// pendingKeyFile holds the key of an enrolment that has no answer yet.
const pendingKeyFile = ".tls.key.pending"

// PendingKey is the key that an enrolment into dir goes on with: the one of an earlier
// attempt, or a new one, written before it is used. Asking again with the same key
// keeps a one-use token good after an answer was lost.
func PendingKey(dir string) (keyPEM []byte, err error) {
	path := filepath.Join(dir, pendingKeyFile)
	keyPEM, err = os.ReadFile(path)
	if err == nil {
		if _, perr := parseKey(keyPEM); perr == nil {
			return keyPEM, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.WrapAs(errs.Internal, err, "pki: pending key")
	}
	_, keyPEM, err = newKey()
	if err != nil {
		return nil, err
	}
	return keyPEM, writeFile(path, keyPEM, privateMode)
}

// DropPendingKey ends an enrolment whose certificate is on disk.
func DropPendingKey(dir string) error {
	err := os.Remove(filepath.Join(dir, pendingKeyFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.WrapAs(errs.Internal, err, "pki: pending key")
	}
	return nil
}
