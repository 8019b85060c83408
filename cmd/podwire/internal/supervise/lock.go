package supervise

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"podwire.dev/cmd/podwire/internal/proc"
	"podwire.dev/cmd/podwire/internal/statedir"
	"podwire.dev/internal/errs"
)

// lockPath is the file that the supervisor holds a lock on for as long as it lives, with its own name in it.
func lockPath(dir statedir.Dir) string { return dir.Path("supervisor.lock") }

func takeLock(dir statedir.Dir) (*os.File, error) {
	f, err := os.OpenFile(lockPath(dir), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "supervisor")
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		f.Close()
		return nil, errs.New(errs.Exists, "another supervisor of %s is running", dir)
	}
	if err == nil {
		err = sign(f)
	}
	if err != nil {
		f.Close()
		return nil, errs.WrapAs(errs.Internal, err, "supervisor")
	}
	return f, nil
}

// giveBack ends the lock at once. Closing the file alone would leave it with what is being forked, until that becomes
// another program.
func giveBack(f *os.File) {
	_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
	_ = f.Close()
}

func sign(f *os.File) error {
	self, err := proc.Of(os.Getpid())
	if err != nil {
		return err
	}
	text, err := json.Marshal(self)
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(append(text, '\n'), 0)
	return err
}

// release is how long the kernel may take to end a process that was killed, and to let go of its lock: as long as its
// threads need to be scheduled once more on a machine under load.
const (
	release     = 30 * time.Second
	releaseLook = 10 * time.Millisecond
)

// Alive says whether a supervisor keeps the children of a state directory, and which process it is. A supervisor that was
// killed keeps nothing, yet it is in the process table and has the lock for a moment: its end is waited for, so that the
// next one can take the lock. It is Unavailable where that does not come.
func Alive(dir statedir.Dir) (proc.Process, bool, error) {
	for end := time.Now().Add(release); ; {
		p, held, err := holder(dir)
		switch {
		case err != nil || !held:
			return proc.Process{}, false, err
		case p != proc.Process{} && !p.Killed():
			return p, true, nil
		case time.Now().After(end):
			return proc.Process{}, false, errs.New(errs.Unavailable, "supervisor of %s: was killed, and process %d still holds its lock", dir, p.PID)
		}
		<-time.After(releaseLook)
	}
}

// holder asks who holds the lock.
func holder(dir statedir.Dir) (proc.Process, bool, error) {
	f, err := os.OpenFile(lockPath(dir), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return proc.Process{}, false, nil
	}
	if err != nil {
		return proc.Process{}, false, errs.WrapAs(errs.Internal, err, "supervisor")
	}
	defer f.Close()
	query := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &query); err != nil {
		return proc.Process{}, false, errs.WrapAs(errs.Internal, err, "supervisor")
	}
	if query.Type == unix.F_UNLCK {
		return proc.Process{}, false, nil
	}
	var p proc.Process
	if err := json.NewDecoder(f).Decode(&p); err != nil {
		return proc.Process{}, true, nil // it has the lock and has not signed yet
	}
	return p, true, nil
}
