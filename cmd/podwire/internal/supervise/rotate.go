package supervise

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	// maxLog is the size of a log, in bytes, at which it is rotated; one older piece is kept.
	maxLog = 10 << 20
	// lookAtLogs is how often sizes are looked at.
	lookAtLogs = 5 * time.Second
)

// rotate keeps the logs within bounds. Children have their log open for appending and live longer than supervisors, so it
// is copied and cut: what a child writes in the instant between is lost.
func (s *supervisor) rotate(ctx context.Context) {
	tick := time.NewTicker(lookAtLogs)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, c := range s.opts.Children {
			if err := rotateLog(s.opts.Dir.Log(c.Name), maxLog); err != nil {
				s.opts.Log.Error("log not rotated", "child", c.Name, "error", err)
			}
		}
	}
}

// rotateLog moves the content of a log beyond limit bytes to path.1.
func rotateLog(path string, limit int64) (err error) {
	from, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil || info.Size() <= limit {
		return err
	}
	to, err := os.OpenFile(path+".1", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	// Of a log that grew faster than we look, the newest part.
	_, err = from.Seek(-min(info.Size(), 2*limit), io.SeekEnd)
	if err == nil {
		_, err = io.Copy(to, from)
	}
	if err = errors.Join(err, to.Close()); err != nil {
		return err
	}
	return from.Truncate(0)
}
