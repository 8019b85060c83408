package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"podwire.dev/internal/errs"
)

// followEvery is how often a followed log is looked at.
const followEvery = 100 * time.Millisecond

// Logs writes a container's log to w; see LogRequest. Older than two rotated files it
// does not go.
func (d *Process) Logs(ctx context.Context, podUID string, req LogRequest, w io.Writer) error {
	p, err := d.pod(podUID)
	if err != nil {
		return err
	}
	c, err := p.container(req.Container)
	if err != nil {
		return err
	}
	p.mu.Lock()
	run := c.attempt
	p.mu.Unlock()
	if req.Run == PreviousRun {
		run--
	}
	if run < 0 {
		return errs.New(errs.NotFound, "runtime: logs of Pod %s: container %s has no such run", p.spec.Ref(), c.spec.Name)
	}
	over := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return c.attempt != run || c.current.Phase != Running
	}
	if req.Until == UntilNow {
		over = func() bool { return true }
	}
	err = followLog(ctx, c.runDir(run), req.Tail, over, w)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "runtime: logs of Pod %s: run %d of container %s kept none", p.spec.Ref(), run, c.spec.Name)
	}
	return errs.WrapAs(errs.Unavailable, err, "runtime: logs of Pod %s", p.spec.Ref())
}

// followLog writes the log in dir from its last tail lines on, until over says that
// nothing more can come, or ctx ends (which is no error).
func followLog(ctx context.Context, dir string, tail int, over func() bool, w io.Writer) error {
	path := filepath.Join(dir, "log")
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { file.Close() }()
	if err := writeTail(path+".1", file, tail, w); err != nil {
		return err
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		// Asked before reading: what is written before the end is read after it.
		last := over()
		if _, err := io.Copy(w, file); err != nil {
			return err
		}
		next, err := rotated(path, file)
		if err != nil {
			return err
		}
		if next != nil {
			// The rest of the old file, written between the last read and the rotation.
			if _, err := io.Copy(w, file); err != nil {
				return err
			}
			file.Close()
			file = next
			continue
		}
		if last {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// rotated opens the file at path if it is another one by now, else nil.
func rotated(path string, file *os.File) (*os.File, error) {
	now, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // between two steps of the rotation, or removed with the Pod
	}
	if err != nil {
		return nil, err
	}
	held, err := file.Stat()
	if err != nil || os.SameFile(now, held) {
		return nil, err
	}
	return os.Open(path)
}

// writeTail writes the end of the older file and leaves file where its part of the
// last lines begins. A negative tail is everything.
func writeTail(oldPath string, file *os.File, tail int, w io.Writer) error {
	if tail == 0 {
		_, err := file.Seek(0, io.SeekEnd)
		return err
	}
	lines := 0
	if tail > 0 {
		from, n, err := tailOffset(file, tail)
		if err != nil {
			return err
		}
		if _, err := file.Seek(from, io.SeekStart); err != nil || n >= tail {
			return err
		}
		lines = n
	}
	old, err := os.Open(oldPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer old.Close()
	if tail > 0 {
		from, _, err := tailOffset(old, tail-lines)
		if err != nil {
			return err
		}
		if _, err := old.Seek(from, io.SeekStart); err != nil {
			return err
		}
	}
	_, err = io.Copy(w, old)
	return err
}

// tailOffset finds where the last n lines of a file begin, and how many there are (at
// most n). A last line without an end counts.
func tailOffset(file *os.File, n int) (offset int64, lines int, err error) {
	info, err := file.Stat()
	if err != nil {
		return 0, 0, err
	}
	size := info.Size()
	buf := make([]byte, 32<<10)
	for end := size; end > 0; {
		begin := max(0, end-int64(len(buf)))
		chunk := buf[:end-begin]
		if _, err := file.ReadAt(chunk, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, fmt.Errorf("%s: %w", file.Name(), err)
		}
		for i := len(chunk); i > 0; {
			i = bytes.LastIndexByte(chunk[:i], '\n')
			if i < 0 {
				break
			}
			at := begin + int64(i) + 1
			if at == size {
				continue // the end of the last line begins none
			}
			if lines++; lines == n {
				return at, lines, nil
			}
		}
		end = begin
	}
	if size > 0 {
		lines++
	}
	return 0, lines, nil
}
