# Built by scripts/images from a directory with these files and nothing else. A member of the fabric is root: it programs the
# kernel.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY dns /usr/bin/dns
ENTRYPOINT ["/usr/bin/dns"]
