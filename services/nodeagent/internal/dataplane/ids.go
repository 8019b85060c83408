package dataplane

import (
	"errors"
	"io/fs"
	"os"

	"podwire.dev/internal/errs"
	"podwire.dev/services/nodeagent/internal/plan"
)

// idFile keeps the allocator's state: a saved state and the logs after it. What a crash of the process leaves is read
// completely; after a loss of power the node's table is gone as well, so the file is not synced for each change.
type idFile struct {
	path string
	file *os.File
	size int64
	base int64
}

// idSlack is how much the logs may outgrow the state before it is saved anew, in bytes.
const idSlack = 1 << 20

// openIDs reads the allocator, or makes one where there is no file. A file that cannot be read is set aside: the
// allocator then avoids the ids that it finds in the kernel.
func openIDs(path string) (*idFile, *plan.Allocator, error) {
	raw, err := os.ReadFile(path)
	var ids *plan.Allocator
	switch {
	case err == nil:
		ids, err = plan.LoadAllocator(raw)
		if err != nil {
			if err := os.Rename(path, path+".damaged"); err != nil {
				return nil, nil, errs.WrapAs(errs.Internal, err, "dataplane: ids")
			}
			ids = plan.NewAllocator()
		}
	case errors.Is(err, fs.ErrNotExist):
		ids = plan.NewAllocator()
	default:
		return nil, nil, errs.WrapAs(errs.Internal, err, "dataplane: ids")
	}
	f := &idFile{path: path}
	return f, ids, f.rewrite(ids)
}

// rewrite replaces the file by the saved state.
func (f *idFile) rewrite(ids *plan.Allocator) error {
	state := ids.Save()
	_ = ids.Log() // part of the state now
	tmp := f.path + ".new"
	file, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "dataplane: ids")
	}
	if _, err = file.Write(state); err == nil {
		err = errors.Join(file.Sync(), os.Rename(tmp, f.path))
	}
	if err != nil {
		return errs.WrapAs(errs.Internal, errors.Join(err, file.Close()), "dataplane: ids")
	}
	if f.file != nil {
		f.file.Close() // of the file that is no longer there
	}
	f.file, f.size, f.base = file, int64(len(state)), int64(len(state))
	return nil
}

// save appends what changed since the last save.
func (f *idFile) save(ids *plan.Allocator) error {
	if f.size-f.base > idSlack+f.base {
		return f.rewrite(ids)
	}
	log := ids.Log()
	if len(log) == 0 {
		return nil
	}
	n, err := f.file.Write(log)
	f.size += int64(n)
	if err != nil { // part of a line may be there, and more would follow it
		return f.rewrite(ids)
	}
	return nil
}

func (f *idFile) close() error { return f.file.Close() }
