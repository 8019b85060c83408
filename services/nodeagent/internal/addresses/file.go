package addresses

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"podwire.dev/internal/errs"
)

// version of the file. An unknown one is refused: giving addresses without knowing what is in quarantine would be worse
// than giving none.
const version = 1

type file struct {
	Version int `json:"version"`
	*pool
}

func load(path string) (*pool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return (&pool{}).clone(), nil
	}
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "addresses: state")
	}
	f := file{pool: &pool{}}
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, errs.WrapAs(errs.Invalid, err, "addresses: %s is damaged; remove it to begin anew from the live links", path)
	}
	if f.Version != version {
		return nil, errs.New(errs.Invalid, "addresses: %s has version %d, this agent knows %d", path, f.Version, version)
	}
	return f.clone(), nil
}

// save replaces the file in one step, and returns when that would survive a loss of power.
func save(path string, p *pool) error {
	b, err := json.Marshal(file{version, p})
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "addresses: state")
	}
	return errs.WrapAs(errs.Unavailable, replace(path, b), "addresses: write the state")
}

func replace(path string, b []byte) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
