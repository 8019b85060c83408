package push

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/nodestate"
	pushv1 "podwire.dev/proto/podwire/push/v1"
)

// Journal keeps the last good state of one source on disk, as the messages that carried it: a snapshot (BEGIN, CHUNKs,
// END), then deltas. A record is
//
//	length uint32 | CRC-32C of what follows uint32 | kind 1 byte | message
//
// in little endian; length counts the kind and the message. The first line of the file names format and source.
//
// An update is appended before it is handed to the kernel, and one that the kernel refused is followed by a rollback.
// When the deltas outgrow the snapshot, the file is written anew and replaced in one rename. Appending is a write(2)
// without fsync: what was appended survives the death of the process, and after a loss of power the file holds an
// earlier state, never a mixture, since a record that is torn or does not have its CRC ends the file. A new file is
// synced before it replaces the old one. The kernel's state is lost with the power too; the service sends what is
// missing.
//
// A Journal is used by one goroutine at a time.
type Journal struct {
	source nodestate.Source
	path   string
	file   *os.File
	// head is where the deltas begin, size where the next record goes.
	head, size int64
	// broken says that the file does not hold the newest state, until it is written anew.
	broken bool
	loaded replay
}

const (
	recordResponse byte = 'R' // SubscribeResponse: BEGIN, CHUNK, END or DELTA
	recordRollback byte = 'B' // SubscribeRequest: the refusal of the record before
	recordFrozen   byte = 'F' // SubscribeResponse: the BEGIN that froze the state

	frameSize = 8
	// minTail is the size of deltas below which the file is not written anew.
	minTail = 64 << 10
)

// OpenJournal reads the journal of a source in a directory, which it creates if need be. A journal that is damaged gives
// the newest state before the damage; see [Journal.Problem].
func OpenJournal(dir string, source nodestate.Source) (*Journal, error) {
	if len(nodestate.Tables(source)) == 0 {
		return nil, errs.New(errs.Internal, "push: journal: %q is no source", source)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "push: journal of %s", source)
	}
	j := &Journal{source: source, path: filepath.Join(dir, string(source)+".journal")}
	data, err := os.ReadFile(j.path)
	if err != nil && !os.IsNotExist(err) {
		return nil, errs.WrapAs(errs.Unavailable, err, "push: journal of %s", source)
	}
	j.loaded = readJournal(source, data)
	if j.loaded.good == 0 {
		err = j.rewrite(nodestate.NewSlice(), nodestate.Version{})
	} else {
		err = j.reopen()
	}
	if err != nil {
		return nil, errs.WrapAs(errs.Unavailable, err, "push: journal of %s", source)
	}
	return j, nil
}

// reopen makes the file ready for the record after the last good one.
func (j *Journal) reopen() error {
	file, err := os.OpenFile(j.path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := file.Truncate(j.loaded.good); err != nil {
		_ = file.Close()
		return err
	}
	j.file, j.head, j.size = file, j.loaded.head, j.loaded.good
	return nil
}

// Load gives the state that the journal held when it was opened: a slice of the caller's own, and its version; the zero
// Version where it held none.
func (j *Journal) Load() (*nodestate.Slice, nodestate.Version) {
	return j.loaded.slice.Clone(), j.loaded.version
}

// Problem says what was wrong with the file when it was opened; empty where nothing was.
func (j *Journal) Problem() string { return j.loaded.problem }

// Close closes the file.
func (j *Journal) Close() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return errs.WrapAs(errs.Unavailable, err, "push: journal of %s", j.source)
}

// append keeps an update that is about to be applied; after are the digests that the slice has with it.
func (j *Journal) append(base, version nodestate.Version, d nodestate.Delta, after digests) error {
	upserts, removes, err := deltaToProto(d)
	if err != nil {
		return err
	}
	return j.write(recordResponse, deltaOf(&pushv1.Delta{
		ClusterId: version.ClusterID, Base: base.Revision, Version: version.Revision, History: version.History,
		Upserts: upserts, Removes: removes, Digests: after.proto(j.source),
	}))
}

// rollback takes the last update back.
func (j *Journal) rollback(refused, held int64) error {
	return j.write(recordRollback, &pushv1.SubscribeRequest{Message: &pushv1.SubscribeRequest_Ack{Ack: &pushv1.Ack{
		Version: refused, Outcome: &pushv1.Ack_Refused{Refused: &pushv1.Refused{HeldVersion: held}},
	}}})
}

// freeze keeps that the state is frozen, so that a restart does not thaw it.
func (j *Journal) freeze(offered nodestate.Version) error {
	return j.write(recordFrozen, beginOf(offered, nil, 0))
}

// settle is called with the state that is now in the kernel: the moment to write the file anew, if that is due.
func (j *Journal) settle(s *nodestate.Slice, v nodestate.Version) error {
	if tail := j.size - j.head; !j.broken && (tail < minTail || tail < j.head) {
		return nil
	}
	if err := j.rewrite(s, v); err != nil {
		j.broken = true
		return errs.WrapAs(errs.Unavailable, err, "push: journal of %s", j.source)
	}
	return nil
}

// write appends a record. A record that cannot be written whole is taken off again.
func (j *Journal) write(kind byte, m proto.Message) error {
	if j.broken || j.file == nil {
		return errs.New(errs.Unavailable, "push: journal of %s: %s does not hold the newest state; it is written anew with the next update", j.source, j.path)
	}
	rec, err := record(nil, kind, m)
	if err != nil {
		return err
	}
	if _, err := j.file.WriteAt(rec, j.size); err != nil {
		j.broken = true // the next settle writes the file anew
		_ = j.file.Truncate(j.size)
		return errs.WrapAs(errs.Unavailable, err, "push: journal of %s", j.source)
	}
	j.size += int64(len(rec))
	return nil
}

// rewrite replaces the file by a snapshot.
func (j *Journal) rewrite(s *nodestate.Slice, v nodestate.Version) (err error) {
	next := j.path + ".new"
	file, err := os.OpenFile(next, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(next)
		}
	}()
	out := &counter{w: file}
	if _, err := io.WriteString(out, header(j.source)); err != nil {
		return err
	}
	if v != (nodestate.Version{}) {
		var buf []byte
		err := snapshot(j.source, v, nil, rowsOf(j.source, s), digestsOf(j.source, s), nil, func(m *pushv1.SubscribeResponse) error {
			var err error
			if buf, err = record(buf[:0], recordResponse, m); err != nil {
				return err
			}
			_, err = out.Write(buf)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(next, j.path); err != nil {
		return err
	}
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.head, j.size, j.broken = file, out.n, out.n, false
	// The rename is durable once the directory is; a loss of power before brings the old file back, which is whole.
	return syncDir(filepath.Dir(j.path))
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

func header(source nodestate.Source) string { return "podwire push journal 1 " + string(source) + "\n" }

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// record appends one record to b.
func record(b []byte, kind byte, m proto.Message) ([]byte, error) {
	start := len(b)
	b = append(b, make([]byte, frameSize)...)
	b = append(b, kind)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "push: journal: encode")
	}
	body := b[start+frameSize:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(body, castagnoli()))
	return b, nil
}

// nextRecord cuts the first record off b; ok is false where none is whole.
func nextRecord(b []byte) (kind byte, body []byte, size int, ok bool) {
	if len(b) < frameSize {
		return 0, nil, 0, false
	}
	n := int64(binary.LittleEndian.Uint32(b))
	// A file may end in zeros after a loss of power; the CRC of nothing is zero, so an empty record is none.
	if n == 0 || n > int64(len(b)-frameSize) {
		return 0, nil, 0, false
	}
	body = b[frameSize : frameSize+int(n)]
	if crc32.Checksum(body, castagnoli()) != binary.LittleEndian.Uint32(b[4:]) {
		return 0, nil, 0, false
	}
	return body[0], body[1:], frameSize + int(n), true
}

// cutHeader gives what follows the first line.
func cutHeader(source nodestate.Source, data []byte) ([]byte, bool) {
	return bytes.CutPrefix(data, []byte(header(source)))
}
