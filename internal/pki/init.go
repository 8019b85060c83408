package pki

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"podwire.dev/internal/errs"
)

// Names in the directory that Init makes, besides CACertFile and CAKeyFile.
const (
	// TokensFile holds the token records, for cluster to load.
	TokensFile = "tokens.json"
	// TokensDir holds one file per plain token, named by TokenFile.
	TokensDir = "tokens"
	// EtcdDir, ClusterDir and AdminDir are identity directories.
	EtcdDir    = "etcd"
	ClusterDir = "cluster"
	AdminDir   = "admin"
)

// Plan is what Init makes tokens for.
type Plan struct {
	// Services that enrol; cluster and etcd do not, their leaves are made by Init.
	Services []string
	// Nodes that join; none is fine, more may be added by another Init.
	Nodes []string
}

// identities are those that get a token, in the order of the plan.
func (p Plan) identities() []Identity {
	var ids []Identity
	for _, s := range p.Services {
		ids = append(ids, Service(s))
	}
	for _, n := range p.Nodes {
		ids = append(ids, Node(n))
	}
	return ids
}

// Result says what Init or HandOut did.
type Result struct {
	// Created are the files that were made, relative to the directory that they were made in.
	// Empty: everything was there already and nothing was changed.
	Created []string
}

// Unchanged says that there was nothing to do.
func (r Result) Unchanged() bool { return len(r.Created) == 0 }

// TokenFile is the path of a plain token inside dir: tokens/<kind>-<name>.token.
func TokenFile(dir string, id Identity) string {
	return filepath.Join(dir, TokensDir, string(id.Kind)+"-"+id.Name+".token")
}

// Init makes what a cluster starts from: the CA, the leaves of etcd, cluster and
// user/admin as identity directories, the key that Secrets are sealed with, and a
// join token per service and node of the plan. It is idempotent: what exists is checked and left as it is, also if an
// earlier Init was interrupted. It refuses a directory whose parts do not belong
// together (a leaf of another CA). Layout: ca.crt ca.key etcd/ cluster/ admin/
// secrets.key tokens.json tokens/.
func Init(dir string, plan Plan) (Result, error) {
	ids := plan.identities()
	for _, id := range ids {
		if err := id.Validate(); err != nil {
			return Result{}, errs.Wrap(err, "pki: init %s", dir)
		}
	}
	i := &initialiser{dir: dir}
	if err := i.run(ids); err != nil {
		return Result{}, errs.Wrap(err, "pki: init %s", dir)
	}
	slices.Sort(i.created)
	return Result{Created: i.created}, nil
}

type initialiser struct {
	dir     string
	created []string
}

func (i *initialiser) run(ids []Identity) error {
	ca, err := i.authority()
	if err != nil {
		return err
	}
	for _, leaf := range []struct {
		dir string
		id  Identity
	}{{EtcdDir, Service("etcd")}, {ClusterDir, Service("cluster")}, {AdminDir, User("admin")}} {
		if err := i.leaf(ca, leaf.dir, leaf.id); err != nil {
			return err
		}
	}
	if err := i.secretsKey(); err != nil {
		return err
	}
	return i.tokens(ids)
}

func (i *initialiser) write(name string, data []byte, mode fs.FileMode) error {
	if err := writeFile(filepath.Join(i.dir, name), data, mode); err != nil {
		return err
	}
	i.created = append(i.created, name)
	return nil
}

// authority loads the CA or makes it. The certificate is written last: a key alone is
// what an interrupted Init left, and nothing was signed with it.
func (i *initialiser) authority() (*Authority, error) {
	have, err := exists(filepath.Join(i.dir, CACertFile))
	if err != nil {
		return nil, errs.WrapAs(errs.Internal, err, "CA certificate")
	}
	if have {
		return LoadAuthority(i.dir)
	}
	for _, leaf := range []string{EtcdDir, ClusterDir, AdminDir} {
		orphan, err := exists(filepath.Join(i.dir, leaf, CertFile))
		if err != nil {
			return nil, errs.WrapAs(errs.Internal, err, "leaf of %s", leaf)
		}
		if orphan {
			return nil, errs.New(errs.Invalid, "%s is missing, but %s/%s exists: restore the CA, or remove the directory to start anew", CACertFile, leaf, CertFile)
		}
	}
	ca, certPEM, keyPEM, err := newAuthority(time.Now())
	if err != nil {
		return nil, err
	}
	if err := i.write(CAKeyFile, keyPEM, privateMode); err != nil {
		return nil, err
	}
	return ca, i.write(CACertFile, certPEM, publicMode)
}

// leaf makes an identity directory, or checks that the one there is the CA's.
func (i *initialiser) leaf(ca *Authority, name string, id Identity) error {
	dir := filepath.Join(i.dir, name)
	have, err := exists(filepath.Join(dir, CertFile))
	if err != nil {
		return errs.WrapAs(errs.Internal, err, "leaf of %s", name)
	}
	if have {
		loaded, err := LoadIdentity(dir)
		if err != nil {
			return err
		}
		if err := loaded.Leaf.CheckSignatureFrom(ca.cert); err != nil {
			return errs.WrapAs(errs.Invalid, err, "%s: was not signed by this CA; remove it to make a new one", filepath.Join(dir, CertFile))
		}
		if loaded.ID != id {
			return errs.New(errs.Invalid, "%s: is the leaf of %s, not of %s", filepath.Join(dir, CertFile), loaded.ID, id)
		}
		return nil
	}
	csr, key, err := NewRequest()
	if err != nil {
		return err
	}
	cert, err := ca.SignStandard(csr, id)
	if err != nil {
		return err
	}
	if err := WriteIdentity(dir, ca.CAPEM(), cert, key); err != nil {
		return err
	}
	for _, f := range []string{CACertFile, CertFile, KeyFile} {
		i.created = append(i.created, filepath.Join(name, f))
	}
	return nil
}

// tokens adds a token for each identity that has no record. The plain tokens are
// written before the records: after an interruption they are merely replaced. An
// identity with a record keeps it, also if its plain file is gone, since whoever
// removed that may well have handed the token over.
func (i *initialiser) tokens(ids []Identity) error {
	path := filepath.Join(i.dir, TokensFile)
	data, err := os.ReadFile(path)
	first := errors.Is(err, fs.ErrNotExist)
	if err != nil && !first {
		return errs.WrapAs(errs.Internal, err, "token records")
	}
	var records []TokenRecord
	if !first {
		if records, err = ParseTokens(data); err != nil {
			return errs.Wrap(err, "%s", path)
		}
	}
	known := len(records)
	for _, id := range ids {
		if slices.ContainsFunc(records, func(r TokenRecord) bool { return r.Identity() == id }) {
			continue
		}
		token, record, err := NewToken(id, time.Time{})
		if err != nil {
			return err
		}
		name := filepath.Join(TokensDir, filepath.Base(TokenFile(i.dir, id)))
		if err := i.write(name, []byte(token+"\n"), privateMode); err != nil {
			return err
		}
		records = append(records, record)
	}
	if !first && len(records) == known {
		return nil
	}
	if data, err = EncodeTokens(records); err != nil {
		return err
	}
	return i.write(TokensFile, data, privateMode)
}
