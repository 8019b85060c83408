package member

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestUnusableRowsAreWarnedAboutWhenTheyStay: the row of a predecessor at one's own address is gone within seconds.
func TestUnusableRowsAreWarnedAboutWhenTheyStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		done := make(chan struct{})
		close(done)
		l := &loop{Member: &Member{log: slog.New(slog.NewTextHandler(&log, nil)), programmed: done}}
		warnings := func() int { return strings.Count(log.String(), "rows of the fabric are not in the kernel") }
		l.done("dns-0 is at our address", 1)
		<-time.After(stays - time.Second)
		l.done("dns-0 is at our address", 1)
		l.done("[]", 0)
		<-time.After(defaultRecheck)
		l.done("[]", 0)
		if n := warnings(); n != 0 {
			t.Errorf("%d warnings about a row that is gone:\n%s", n, log.String())
		}
		for range 3 {
			l.done("node-9 has no address", 1)
			<-time.After(defaultRecheck)
		}
		if n := warnings(); n != 1 {
			t.Errorf("%d warnings about a row that stays:\n%s", n, log.String())
		}
	})
}
