package store

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/store/kv"
)

// Blob is a small value that is no object, such as the mark that a join token was used.
type Blob struct {
	// Path is its name, with slashes where the caller wants to list by prefix.
	Path string
	// Revision is that of its last change.
	Revision Revision
	// Message is its value.
	Message proto.Message
}

// blobKey checks a path.
func blobKey(path string) (string, error) {
	if err := checkSegments(strings.Split(path, "/")...); err != nil {
		return "", errs.Wrap(err, "store: blob %q", path)
	}
	return blobRoot + path, nil
}

// GetBlob reads a value into a message of the type that was written. The revision is the value's. Errors: NotFound.
func (s *Store) GetBlob(ctx context.Context, path string, into proto.Message) (Revision, error) {
	key, err := blobKey(path)
	if err != nil {
		return 0, err
	}
	return s.getMessage(ctx, key, into)
}

// PutBlob writes a value that must still have the revision; 0 is absence. It returns the new revision. Errors: Conflict.
func (s *Store) PutBlob(ctx context.Context, path string, msg proto.Message, rev Revision) (Revision, error) {
	return s.Txn().PutBlob(path, msg, rev).Commit(ctx)
}

// DeleteBlob removes a value that must still have the revision. Errors: Conflict.
func (s *Store) DeleteBlob(ctx context.Context, path string, rev Revision) error {
	key, err := blobKey(path)
	if err != nil {
		return err
	}
	_, err = s.Txn().compare(kv.Compare{Key: key, Target: kv.CompareMod, Revision: int64(rev)}).remove(key).Commit(ctx)
	return err
}

// ListBlobs reads the values whose paths begin with dir and a slash, by path, each into a message that empty returns.
func (s *Store) ListBlobs(ctx context.Context, dir string, empty func() proto.Message) ([]Blob, error) {
	prefix, err := blobKey(dir)
	if err != nil {
		return nil, err
	}
	list, _, err := listAll(ctx, s, prefix+"/", func(pair kv.KeyValue) (Blob, error) {
		msg := empty()
		_, err := open(pair, messageKind(msg), msg)
		return Blob{Path: pair.Key[len(blobRoot):], Revision: Revision(pair.ModRevision), Message: msg}, err
	})
	return list, err
}

func (s *Store) getMessage(ctx context.Context, key string, into proto.Message) (Revision, error) {
	resp, err := s.engine.Range(ctx, kv.RangeRequest{Key: key})
	if err != nil {
		return 0, wrap(err, "store: read %s", key)
	}
	s.note(resp.Header)
	if len(resp.KVs) == 0 {
		return 0, errs.New(errs.NotFound, "store: %s not found", key)
	}
	if _, err := open(resp.KVs[0], messageKind(into), into); err != nil {
		return 0, err
	}
	return Revision(resp.KVs[0].ModRevision), nil
}
